"""`clean` takes the CA out of every store and proves it, also where a killed command has left it half done."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from trust_house import FIREFOX, TrustHouse, said
from trust_stage import looks_the_same

from mitmsec.cli import cli
from mitmsec.service import ca_journal, left_trust, leftovers, trust_work
from mitmsec.service.state import State
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.journal import Phase
from mitmsec_certs.truststore.keeper import Done
from mitmsec_certs.truststore.plan import Root, Step, Store
from mitmsec_certs.truststore.root import root_of, roots_of

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path) -> TrustHouse:
    return TrustHouse(tmp_path)


def trust(house: TrustHouse, *roots: Root) -> None:
    done = list(trust_work.trust(house.state, house.stores(), roots or roots_of(house.state.ca), "ann"))
    assert all(isinstance(one, Done) for one in done)


def clean(state: State, *words: str) -> Result:
    return CliRunner().invoke(cli, ["clean", "--state", str(state.folder), *words])


@pytest.mark.checklist("K7")
def test_clean_leaves_every_store_as_it_was(house: TrustHouse) -> None:
    with looks_the_same(house.tree):
        trust(house)
        assert len(left_trust.remaining(house.state)) == 3
        done = clean(house.state)
        assert done.exit_code == 0, said(done)
        assert "no trust store trusts it by our hand" in done.stdout
        assert [line.split()[:2] for line in done.stdout.splitlines()[:3]] == [
            ["trust", "chromium"], ["trust", "firefox"], ["trust", "system"],
        ]  # fmt: skip
    assert not house.state.trust.exists()
    operations = [(seen.operation, seen.user) for seen in ca_journal.left(house.state)]
    assert operations == [("trusted", "ann")] * 3 + [("untrusted", "root")] * 3


@pytest.mark.checklist("K7")
def test_a_purge_leaves_no_root_behind(house: TrustHouse) -> None:
    with looks_the_same(house.tree):
        trust(house)
        assert clean(house.state, "--purge").exit_code == 0
    assert not house.state.folder.exists()


class Killing(Host):
    """A machine on which the first tool is the last thing that we live to see."""

    def perform(self, store: Store, step: Step) -> None:
        super().perform(store, step)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.checklist("K7")
def test_clean_goes_on_with_what_a_killed_command_has_begun(house: TrustHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    with looks_the_same(house.tree):
        pid = os.fork()
        if pid == 0:
            monkeypatch.setattr(trust_work, "Host", Killing)
            trust(house)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert [entry.phase for entry in trust_work.entries(house.state)] == [Phase.ADDING]
        done = clean(house.state)
        assert done.exit_code == 0, said(done)
    assert trust_work.entries(house.state) == []


def test_what_cannot_be_taken_back_is_told_and_stays_for_the_next_time(house: TrustHouse) -> None:
    trust(house)
    database = house.tree / f"home/tester/{FIREFOX}/cert9.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database any more")
    done = clean(house.state)
    assert done.exit_code == 1
    assert "could not be removed: firefox" in done.stdout
    assert "still there: trust in firefox" in done.stderr
    assert [entry.store.name for entry in trust_work.entries(house.state)] == ["firefox"]
    database.write_bytes(whole)
    assert clean(house.state).exit_code == 0


@pytest.mark.checklist("K7")
def test_a_root_whose_time_is_over_goes_with_the_next_start(house: TrustHouse) -> None:
    long_ago = int(time.time()) - 900 * 86400
    (house.folder / "old").mkdir(mode=0o700)
    ended = root_of(open_keystore(house.folder / "old", "machine.example", long_ago).root_pem.encode())
    trust(house)
    trust(house, ended)
    assert len(trust_work.entries(house.state)) == 6
    leftovers.reap(house.state)
    assert {entry.root for entry in trust_work.entries(house.state)} == {*roots_of(house.state.ca)}
    assert len(trust_work.entries(house.state)) == 3
    assert [seen.user for seen in ca_journal.left(house.state)][-3:] == ["mitmsec"] * 3


def test_the_process_that_does_it_says_what_became_of_it(
    house: TrustHouse, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    trust(house)
    monkeypatch.setattr(sys, "argv", ["left_trust", str(house.state.folder)])
    left_trust.main()
    assert capsysbinary.readouterr().out == b"[]"


def test_without_a_store_there_is_nothing_to_do(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.make()
    assert (left_trust.withdraw(state, "root"), left_trust.withdraw_ended(state), left_trust.remaining(state)) == (
        [],
        [],
        [],
    )
    assert not state.trust.exists()


def test_a_journal_that_nobody_can_read_is_told(house: TrustHouse) -> None:
    trust(house)
    (house.state.trust / "0001/entry.json").write_text("{}")
    for told in (left_trust.withdraw(house.state, "root"), left_trust.withdraw_ended(house.state)):
        ((name, problem),) = told
        assert name == str(house.state.trust)
        assert problem
    assert left_trust.remaining(house.state) == [str(house.state.trust)]
    assert clean(house.state).exit_code == 1
