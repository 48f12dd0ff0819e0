"""NSS databases: what certutil makes of our plans. The journeys are in test_keeper."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from trust_stage import keeper_of, nss_home, some_root

from mitmsec_certs.truststore.found import stores
from mitmsec_certs.truststore.plan import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (store,) = stores([nss_home(tmp_path / "home", ".pki/nssdb")], str(tmp_path))
    return store


def certutil(store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["certutil", *words, "-d", f"sql:{store.place}"], capture_output=True, text=True)


def test_a_root_is_trusted_for_servers_and_for_nothing_else(store: Store, tmp_path: Path) -> None:
    keeper, journal = keeper_of(tmp_path / "trust")
    with journal.held():
        keeper.trust(store, some_root())
    usages = {
        usage: certutil(store, "-V", "-n", some_root().label, "-u", usage).returncode == 0 for usage in ("L", "C", "S")
    }
    assert usages == {"L": True, "C": False, "S": False}, "a CA for TLS servers, not for clients, nor for mail"


def test_a_root_whose_flags_somebody_has_taken_is_not_trusted_and_still_ours_to_remove(
    store: Store, tmp_path: Path
) -> None:
    keeper, journal = keeper_of(tmp_path / "trust")
    with journal.held():
        keeper.trust(store, some_root())
        assert certutil(store, "-M", "-n", some_root().label, "-t", ",,").returncode == 0
        assert not keeper.holds(store, some_root())
        keeper.untrust(*journal.entries())
    assert some_root().label not in certutil(store, "-L").stdout


def test_a_home_and_a_profile_with_spaces(tmp_path: Path) -> None:
    profile = ".mozilla/firefox/My Profile 1"
    (store,) = stores([nss_home(tmp_path / "a [home]", profile)], str(tmp_path))
    keeper, journal = keeper_of(tmp_path / "trust")
    with journal.held():
        keeper.trust(store, some_root())
        assert keeper.holds(store, some_root())
    assert os.path.basename(store.place) == "My Profile 1"
