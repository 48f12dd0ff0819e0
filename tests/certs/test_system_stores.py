"""Debian's and RHEL's stores: what their own tools do with our plans. The journeys are in test_keeper."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_truststore_plan import ROOT
from trust_stage import debian_tree, in_copy, keeper_of, looks_the_same, new_root, some_root

from mitmsec_certs.truststore.found import stores
from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.keeper import Became
from mitmsec_certs.truststore.plan import Drop, Layout, Run, certificate_entry
from mitmsec_certs.truststore.plans import plan_of
from mitmsec_certs.truststore.system_stores import debian, debian_plan, rhel, rhel_plan

# What update-ca-trust of RHEL's ca-certificates does, as far as the store of TLS servers goes, with the same tool.
UPDATE_CA_TRUST = """#!/bin/sh -e
[ "$1" = extract ]
to=/etc/pki/ca-trust/extracted servers="--filter=ca-anchors --overwrite --purpose server-auth"
mkdir -p $to/pem $to/java
trust extract --comment --format=pem-bundle $servers $to/pem/tls-ca-bundle.pem
trust extract --format=java-cacerts $servers $to/java/cacerts
"""
MODULE = "module: p11-kit-trust.so\ntrust-policy: yes\nx-init-reserved: paths='/etc/pki/ca-trust/source'\n"


def test_java_is_looked_after_only_where_the_system_fills_its_store() -> None:
    without, having = debian_plan(debian(), ROOT), debian_plan(debian(keytool="/usr/bin/keytool"), ROOT)
    assert len(without.looks) + 1 == len(having.looks)
    assert having.own - without.own == {certificate_entry(ROOT.sha256, "java")}
    assert having.removing[-1].argv[0] == "/usr/bin/keytool"  # type: ignore[union-attr]


def test_another_tree_is_the_tools_business() -> None:
    (tool,) = [step for step in debian_plan(debian("/tree"), ROOT).adding if isinstance(step, Run)]
    assert [word for word in tool.argv if word.startswith("/") and not word.startswith("/tree/")] == []
    (tool,) = [step for step in debian_plan(debian(), ROOT).adding if isinstance(step, Run)]
    assert tool.argv == ("update-ca-certificates",)


def test_rhels_anchor_is_one_file() -> None:
    plan = rhel_plan(rhel(), ROOT)
    assert plan.removing[0] == Drop(path=f"/etc/pki/ca-trust/source/anchors/{ROOT.label}.pem")


def test_openssl_finds_the_root_by_its_hash_and_in_the_bundle(tmp_path: Path) -> None:
    store = debian_tree(tmp_path)
    keeper, journal = keeper_of(tmp_path / "trust")
    with journal.held():
        keeper.trust(store, some_root())
    root = tmp_path / "root.pem"
    root.write_text(some_root().pem)
    for option in (["-CApath", store.place], ["-CAfile", f"{store.place}/ca-certificates.crt"]):
        verify = ["openssl", "verify", "-no-CAfile", "-no-CApath", *option, str(root)]
        assert subprocess.run(verify, capture_output=True).returncode == 0, option


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("trust") is None, reason="trust is missing (Debian package p11-kit)")
@pytest.mark.checklist("K7")
def test_rhels_layout_with_its_own_extractor() -> None:
    def story() -> None:
        for folder in ("source/anchors", "extracted"):
            Path("/etc/pki/ca-trust", folder).mkdir(parents=True)
        Path("/etc/pki/ca-trust/source/anchors/theirs.pem").write_text(new_root().pem)
        Path("/usr/share/p11-kit/modules/p11-kit-trust.module").write_text(MODULE)
        tool = Path("/usr/local/bin/update-ca-trust")
        tool.write_text(UPDATE_CA_TRUST)
        tool.chmod(0o755)
        Path("/usr/sbin/update-ca-certificates").unlink()
        Host().perform(rhel(), Run(argv=("update-ca-trust", "extract")))
        (store,) = [one for one in stores([]) if one.name == "system"]
        assert store.layout is Layout.RHEL
        keeper, journal = keeper_of(Path("/var/lib/mitmsec-test"))
        with looks_the_same("/etc/pki"), journal.held():
            assert keeper.trust(store, some_root()).became is Became.ADDED
            assert len(Host().entries(store, plan_of(store, some_root()))) == 2
            assert keeper.untrust(*journal.entries()).became is Became.RESTORED
        with journal.held():
            keeper.trust(store, some_root())
            Path("/etc/pki/ca-trust/source/anchors/more.pem").write_text(new_root().pem)
            assert keeper.untrust(*journal.entries()).became is Became.REMOVED
            assert len(Host().entries(store, plan_of(store, some_root()))) == 2
        assert not keeper.holds(store, some_root())

    in_copy(story)
