"""What is done to stores goes on record, and nothing else; each root in each store is told as it is now."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from trust_house import TrustHouse

from mitmsec.service import ca_journal, trust_work
from mitmsec.service.state import State
from mitmsec_certs.truststore.java_stores import java
from mitmsec_certs.truststore.journal import Journal, Phase
from mitmsec_certs.truststore.keeper import Became, Done, NotDone
from mitmsec_certs.truststore.root import roots_of

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path) -> TrustHouse:
    return TrustHouse(tmp_path)


def test_each_change_is_on_record_and_nothing_else_is(house: TrustHouse) -> None:
    (system, *_), roots = house.stores(), roots_of(house.state.ca)
    broken = java(str(house.folder / "cacerts"), "no-such-keytool")
    results = list(trust_work.trust(house.state, [system, system, broken], roots, "ann"))
    assert [result.became for result in results if isinstance(result, Done)] == [Became.ADDED, Became.IS_THERE]
    assert isinstance(results[2], NotDone)
    assert results[2].undone
    assert [(seen.operation, seen.detail, seen.user) for seen in ca_journal.left(house.state)] == [
        ("trusted", str(system), "ann")
    ]


def test_rows_say_what_is_recorded_and_what_is_so(house: TrustHouse) -> None:
    stores, roots = house.stores(), roots_of(house.state.ca)
    list(trust_work.trust(house.state, stores[:1], roots, "ann"))
    rows = list(trust_work.listed(house.state, stores, roots))
    assert [(row.place, row.state, bool(row.since)) for row in rows] == [
        (stores[0].place, "trusted", True),
        (stores[1].place, "not_trusted", False),
        (stores[2].place, "not_trusted", False),
    ]


def test_what_was_left_half_done_is_told(house: TrustHouse) -> None:
    (system, *_), (root,) = house.stores(), roots_of(house.state.ca)
    list(trust_work.trust(house.state, [system], [root], "ann"))
    journal = Journal(house.state.trust)
    (entry,) = journal.entries()
    with journal.held():
        journal.write(msgspec.structs.replace(entry, phase=Phase.RESTORING))
    (row,) = trust_work.listed(house.state, [], [])
    assert row.state == "half_done"


def test_another_state_knows_only_that_it_was_somebody_else(house: TrustHouse, tmp_path: Path) -> None:
    stores, roots = house.stores()[:1], roots_of(house.state.ca)
    list(trust_work.trust(house.state, stores, roots, "ann"))
    (row,) = trust_work.listed(State(tmp_path / "other"), stores, roots)
    assert row.state == "trusted_by_others"
