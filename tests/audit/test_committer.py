"""Group commit: acknowledged only what is on disk, in order, and tried until the disk takes it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from audit_events import connection, draft, store_in

from mitmsec.audit import committer as module
from mitmsec.audit.committer import Committer
from mitmsec.audit.envelope import Draft
from mitmsec.audit.following import Following
from mitmsec.audit.inlet import Inlet
from mitmsec.audit.merkle import Tree
from mitmsec.audit.review import opened
from mitmsec.audit.store import LogUnwritable
from mitmsec.audit.verifying import Verified


class Ledger:
    """A committer on a real log, and what it told."""

    def __init__(self, folder: Path) -> None:
        following = Following(folder)
        self.store = store_in(folder)
        self.rounds: list[list[str]] = []
        self.refused = 0
        self.recovered: list[tuple[int, str]] = []
        self.news = asyncio.Event()
        self.committer = Committer(
            self.store, following, self._settled, self._on_committed, self._on_refused, self._on_recovered
        )

    def _settled(self) -> Sequence[tuple[Inlet, int]]:
        return []

    def _on_committed(self, drafts: Sequence[Draft]) -> None:
        self.rounds.append([one.id for one in drafts])
        self.news.set()

    def _on_refused(self) -> None:
        self.refused += self.committer.failing

    def _on_recovered(self, tries: int, why: str) -> None:
        self.recovered.append((tries, why))


def test_events_that_come_together_are_one_round_and_all_are_on_disk_when_it_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        await ledger.committer.drained()
        for number in range(10):
            ledger.committer.add(draft(connection(f"flow-{number}")))
        assert ledger.committer.holds("run-1")
        assert not ledger.committer.holds("run-2")
        await ledger.committer.drained()
        assert ledger.rounds == [[f"flow-{number}" for number in range(10)]]
        assert ledger.store.tree.size == 10
        assert not ledger.committer.holds("run-1")
        assert await ledger.committer.close() == 0

    asyncio.run(scenario())
    with opened(tmp_path) as log:
        assert isinstance(log.proofs.verify(), Verified)


def test_a_round_can_be_had_without_events(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        ledger.committer.poke()
        await ledger.committer.drained()
        assert ledger.rounds == [[]]
        await ledger.committer.close()

    asyncio.run(scenario())


def test_a_disk_that_refuses_is_tried_again_with_the_same_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    failures = 3

    async def scenario() -> None:
        nonlocal failures
        ledger = Ledger(tmp_path)
        append = ledger.store.append

        def refusing(drafts: Sequence[Draft], *, signs: bool) -> Tree:
            nonlocal failures
            if failures:
                failures -= 1
                raise LogUnwritable("no space left")
            return append(drafts, signs=signs)

        monkeypatch.setattr(ledger.store, "append", refusing)
        for number in range(3):
            ledger.committer.add(draft(connection(f"flow-{number}")))
        await ledger.committer.drained()
        assert ledger.recovered == [(3, "no space left")]
        assert (ledger.refused, ledger.committer.failing) == (1, False)
        assert ledger.rounds == [["flow-0", "flow-1", "flow-2"]]
        assert ledger.store.tree.size == 3
        await ledger.committer.close()

    asyncio.run(scenario())
    assert capsys.readouterr().err.count("takes no events (no space left)") == 1


def test_closing_while_the_disk_refuses_tells_how_many_events_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        refused = asyncio.Event()
        loop = asyncio.get_running_loop()

        def refusing(drafts: Sequence[Draft], *, signs: bool) -> Tree:
            loop.call_soon_threadsafe(refused.set)
            raise LogUnwritable("no space left")

        monkeypatch.setattr(ledger.store, "append", refusing)
        ledger.committer.add(draft(connection("flow-0")))
        await refused.wait()
        ledger.committer.add(draft(connection("flow-1")))
        assert await ledger.committer.close() == 2

    asyncio.run(scenario())


def test_a_fault_in_the_writer_itself_ends_the_process(tmp_path: Path) -> None:
    """A recorder that does not commit any more must not look alive."""
    code = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from mitmsec.audit.committer import Committer
from mitmsec.audit.following import Following
from audit_events import store_in
async def scenario():
    folder = Path(sys.argv[1])
    following, store = Following(folder), store_in(folder)
    committer = Committer(store, following, lambda: [], lambda drafts: 1 / 0, int, lambda tries, why: None)
    committer.poke()
    await asyncio.sleep(60)
asyncio.run(scenario())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent.parent)], capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert b"ZeroDivisionError" in done.stderr


# --- checkpoints ------------------------------------------------------------------------------------------------------
def test_the_first_round_is_signed_and_then_one_a_second_while_there_is_something_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        ledger.committer.add(draft(connection("flow-0")))
        await ledger.committer.drained()
        assert ledger.store.signed_size == 1
        ledger.committer.add(draft(connection("flow-1")))
        await ledger.committer.drained()
        assert (ledger.store.signed_size, ledger.store.tree.size) == (1, 2)
        monkeypatch.setattr(module, "SIGN_S", 0.0)  # as if a second had passed
        ledger.committer.poke()
        await ledger.committer.drained()
        assert ledger.store.signed_size == 2
        notes = ledger.store._conn.total_changes
        ledger.committer.poke()
        await ledger.committer.drained()
        assert ledger.store._conn.total_changes == notes, "nothing new, nothing signed"
        await ledger.committer.close()

    asyncio.run(scenario())


def test_what_is_not_signed_at_the_end_is_signed_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        for number in range(2):
            ledger.committer.add(draft(connection(f"flow-{number}")))
            await ledger.committer.drained()
        assert ledger.store.signed_size == 1
        await ledger.committer.close()
        assert ledger.store.signed_size == 2

    asyncio.run(scenario())


def test_a_disk_that_does_not_take_a_checkpoint_alone_is_not_asked_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost by that: who has the next events will say so."""
    monkeypatch.setattr(module, "SIGN_S", 0.0)

    async def scenario() -> None:
        ledger = Ledger(tmp_path)
        ledger.store.append([draft(connection("flow-0"))])

        def refusing(drafts: Sequence[Draft], *, signs: bool) -> Tree:
            raise LogUnwritable("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(ledger.store, "append", refusing)
            ledger.committer.poke()
            await ledger.committer.drained()
            assert (ledger.refused, ledger.recovered) == (0, [])
            assert await ledger.committer.close() == 0

    asyncio.run(scenario())
