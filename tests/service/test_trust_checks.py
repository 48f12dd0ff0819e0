"""`doctor` tells which stores trust the CA, and what is not as it should be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from trust_house import TrustHouse

from mitmsec.service import trust_work
from mitmsec.service.state import State
from mitmsec.service.trust_checks import trust_checks
from mitmsec_certs.truststore.journal import Journal, Phase
from mitmsec_certs.truststore.root import roots_of
from mitmsec_redirect.probe import Check

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path) -> TrustHouse:
    house = TrustHouse(tmp_path)
    firefox = [store for store in house.stores() if store.name == "firefox"]
    list(trust_work.trust(house.state, firefox, roots_of(house.state.ca), "ann"))
    return house


def check(house: TrustHouse) -> Check:
    (check,) = trust_checks(house.state)
    assert check.optional, "a run works without"
    return check


def rewrite(house: TrustHouse, **changes: object) -> None:
    journal = Journal(house.state.trust)
    (entry,) = journal.entries()
    with journal.held():
        journal.write(msgspec.structs.replace(entry, **changes))


def test_a_store_that_trusts_it_is_told(house: TrustHouse) -> None:
    found = check(house)
    assert (found.ok, "trusts our root" in found.detail) == (True, True)


def test_one_that_somebody_has_changed_is_told(house: TrustHouse) -> None:
    ((entry),) = trust_work.entries(house.state)
    argv = ["certutil", "-D", "-n", entry.root.label, "-d", f"sql:{entry.store.place}"]
    subprocess.run(argv, check=True, capture_output=True)
    found = check(house)
    assert (found.ok, "somebody has taken our root out" in found.detail) == (False, True)
    assert "ca untrust firefox --state" in found.remedy


def test_one_that_was_left_half_done_is_told(house: TrustHouse) -> None:
    rewrite(house, phase=Phase.ADDING)
    found = check(house)
    assert (found.ok, "half done" in found.detail, "clean --state" in found.remedy) == (False, True, True)


def test_a_root_that_has_ended_is_told(house: TrustHouse) -> None:
    (entry,) = trust_work.entries(house.state)
    rewrite(house, root=msgspec.structs.replace(entry.root, not_after="2020-01-01T00:00:00Z"))
    found = check(house)
    assert (found.ok, "it has ended" in found.detail) == (False, True)


def test_one_that_cannot_be_read_is_told(house: TrustHouse) -> None:
    (entry,) = trust_work.entries(house.state)
    shutil.rmtree(entry.store.place)
    assert "cannot be read" in check(house).detail


def test_without_any_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert trust_checks(State(tmp_path / "none")) == []


def test_a_journal_that_nobody_can_read_is_told(house: TrustHouse) -> None:
    (house.state.trust / "0001/entry.json").write_text("{}")
    assert not check(house).ok
