"""Java's own stores, with the real keytool: in, read back, and out again byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from trust_stage import keeper_of, looks_the_same, new_root, some_root

from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.java_stores import java
from mitmsec_certs.truststore.keeper import Became, NotDone
from mitmsec_certs.truststore.plan import Store, certificate_entry
from mitmsec_certs.truststore.plans import plan_of

KEYTOOL = shutil.which("keytool") or ""
pytestmark = pytest.mark.skipif(not KEYTOOL, reason="keytool is missing (Debian package default-jre-headless)")


def store_with(folder: Path, password: str = "changeit") -> Store:
    place = folder / "jdk/lib/security/cacerts"
    place.parent.mkdir(parents=True)
    somebody_imports(place, "theirs", password)
    return java(str(place), KEYTOOL)


def somebody_imports(place: Path, alias: str, password: str = "changeit") -> None:
    words = ["-importcert", "-noprompt", "-alias", alias, "-keystore", str(place), "-storepass", password]
    subprocess.run([KEYTOOL, *words], input=new_root().pem.encode(), check=True, capture_output=True)


@pytest.mark.checklist("K7")
def test_a_root_goes_into_a_jdk_and_out_again(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    keeper, journal = keeper_of(tmp_path / "trust")
    with looks_the_same(tmp_path / "jdk"), journal.held():
        assert keeper.trust(store, some_root()).became is Became.ADDED
        assert keeper.untrust(*journal.entries()).became is Became.RESTORED
    with journal.held():
        keeper.trust(store, some_root())
        somebody_imports(Path(store.place), "another")
        assert keeper.untrust(*journal.entries()).became is Became.REMOVED
        left = Host().entries(store, plan_of(store, some_root()))
    assert len(left) == 2
    assert certificate_entry(some_root().sha256) not in left


def test_a_store_with_another_password_is_left_as_it_was(tmp_path: Path) -> None:
    store = store_with(tmp_path, "another one")
    keeper, journal = keeper_of(tmp_path / "trust")
    with looks_the_same(tmp_path / "jdk"), journal.held():
        with pytest.raises(NotDone, match="password was incorrect"):
            keeper.trust(store, some_root())
