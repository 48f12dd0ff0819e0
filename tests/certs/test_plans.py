"""Every kind of store has a plan, and each plan keeps to it."""

from __future__ import annotations

import pytest
from test_truststore_plan import ROOT

from mitmsec_certs.truststore.java_stores import java
from mitmsec_certs.truststore.nss_stores import nss
from mitmsec_certs.truststore.plan import Drop, Layout, Put, Store, StoreName
from mitmsec_certs.truststore.plans import plan_of
from mitmsec_certs.truststore.system_stores import debian, rhel

STORES = [
    debian(),
    debian(keytool="/usr/bin/keytool"),
    rhel(),
    java("/opt/jdk/lib/security/cacerts", "/opt/jdk/bin/keytool"),
    nss(StoreName.FIREFOX, "/home/a/profile", uid=1000, user="a"),
]


def test_there_is_one_for_each_layout() -> None:
    assert {store.layout for store in STORES} == set(Layout)


@pytest.mark.parametrize("store", STORES, ids=str)
def test_what_is_written_and_removed_lies_in_what_is_watched(store: Store) -> None:
    plan = plan_of(store, ROOT)
    paths = [step.path for step in (*plan.adding, *plan.removing) if isinstance(step, Put | Drop)]
    assert [path for path in paths if not path.startswith(tuple(f"{place}/" for place in plan.watched))] == []
    assert plan.own
    assert plan.looks
    assert set(plan.live) <= set(plan.watched)


@pytest.mark.parametrize("store", STORES, ids=str)
def test_nothing_names_a_file_that_is_not_this_stores(store: Store) -> None:
    """In what is put there, that it is ours can be seen: its name says so."""
    plan = plan_of(store, ROOT)
    assert all(ROOT.label in step.path for step in (*plan.adding, *plan.removing) if isinstance(step, Put | Drop))
