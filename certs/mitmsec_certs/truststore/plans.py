"""The plan of any store."""

from __future__ import annotations

from typing import assert_never

from mitmsec_certs.truststore.java_stores import java_plan
from mitmsec_certs.truststore.nss_stores import nss_plan
from mitmsec_certs.truststore.plan import Layout, Plan, Root, Store
from mitmsec_certs.truststore.system_stores import debian_plan, rhel_plan


def plan_of(store: Store, root: Root) -> Plan:
    """What is done to `store` for `root`."""
    match store.layout:
        case Layout.DEBIAN:
            return debian_plan(store, root)
        case Layout.JAVA:
            return java_plan(store, root)
        case Layout.NSS:
            return nss_plan(store, root)
        case Layout.RHEL:
            return rhel_plan(store, root)
        case _:
            assert_never(store.layout)
