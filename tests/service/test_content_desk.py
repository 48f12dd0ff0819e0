"""Content beside the log, kept and ordered about: a real recorder, its files, and the log, which stays whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from audit_events import CURL, finding, handed
from msgspec.structs import replace
from recorder_child import RecorderChild, recorder

from mitmsec.audit.criteria import Filter
from mitmsec.audit.proving import SignedBy
from mitmsec.audit.review import opened
from mitmsec.audit.vault import FILE_NAME, Vault, Wanted
from mitmsec.audit.verifying import Verified
from mitmsec.core.content_orders import (
    ApproveUnmasking,
    ContentErased,
    ContentLimited,
    ContentOrder,
    ContentRefused,
    EraseContent,
    EvidenceAnswer,
    EvidenceQuestion,
    LimitContent,
    RequestUnmasking,
    Unmask,
    Unmasked,
    UnmaskingApproved,
    UnmaskingRequested,
    UnmaskingsQuestion,
)
from mitmsec.core.messages import Role
from mitmsec.core.unmasking import Person
from mitmsec.seal import CONTENT_FILE_NAME, checks

CLEAR = b"AKIA-not-for-everybody"
ALICE, BOB = Person(name="alice", uid=1000), Person(name="bob", uid=1001)
SOON = "import mitmsec.service.recorder as r; import mitmsec.service.content_desk as d; d.LOOK_S = 0.3; r.child.main(r.ACCEPTS, r.Recorder)"  # noqa: E501


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(play())


def events(folder: Path, **wanted: Any) -> list[dict[str, Any]]:
    """Those in the log, which must be whole."""
    with opened(folder) as log:
        assert isinstance(log.proofs.verify(), Verified)
    return said(folder, **wanted)


def said(folder: Path, **wanted: Any) -> list[dict[str, Any]]:
    """Those in the log, while it is written."""
    with opened(folder) as log:
        return [event for event in log.events(Filter()) if all(event.get(key) == wanted[key] for key in wanted)]


async def keep(child: RecorderChild, *clears: bytes, keep_s: int = 0) -> None:
    """A worker's findings, acknowledged."""
    gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
    gate.record(handed(keep_evidence_s=keep_s))
    await gate.flushed()
    for clear in clears:
        worker.record(finding(clear=clear))
    await worker.flushed()
    gate.close()
    worker.close()


async def order(child: RecorderChild, said: ContentOrder, *fds: int) -> Any:
    child.control.send(said, *fds)
    return await child.inbox.get()


async def shown(child: RecorderChild, event: str, by: Person) -> tuple[Any, bytes]:
    """The answer, and what came through the pipe."""
    reading, writing = os.pipe()
    try:
        answer = await order(child, Unmask(event=event, by=by), writing)
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        return answer, pipe.read()


def test_what_a_finding_found_lies_beside_the_log_and_is_named_in_its_event_by_a_hash(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            await keep(child, CLEAR, b"", CLEAR)
            assert (await child.flush()).findings == 3
            assert await child.end() == 0
            assert child.errors() == ""

    run(scenario)
    without, first, second = sorted(events(tmp_path, kind="finding"), key=lambda event: "content" in event)
    assert "content" not in without
    assert first["content"].keys() == {"id", "sha256", "size"}
    vault = Vault(tmp_path)
    kept = [vault.find(event["id"]) for event in (first, second)]
    assert vault.size() == 2
    vault.close()
    assert kept[0] is not None
    assert (kept[0].user, kept[0].connection, kept[0].expires_s) == (CURL.user, "flow-1", None)
    assert first["content"]["sha256"] == hashlib.sha256(kept[0].sealed).hexdigest()
    assert first["content"]["size"] == len(kept[0].sealed)
    assert first["content"]["sha256"] != second["content"]["sha256"]  # of the same value
    assert all(CLEAR not in path.read_bytes() for path in tmp_path.iterdir())
    assert CLEAR.decode() not in str(events(tmp_path))  # where it may be packed
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if "content" in path.name} == {
        FILE_NAME: 0o600, CONTENT_FILE_NAME: 0o600,
    }  # fmt: skip


def test_without_evidence_nothing_is_made_and_what_a_policy_does_not_keep_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            gate.record(handed())
            await gate.flushed()
            worker.record(finding())
            worker.record(finding(clear=CLEAR))
            await worker.flushed()
            gate.close()
            worker.close()
            assert await child.end() == 0

    run(scenario)
    assert len(events(tmp_path, kind="finding")) == 1
    assert not (tmp_path / FILE_NAME).exists()
    (fault,) = events(tmp_path, kind="fault")
    assert fault["detail"] == "worker-0: FindingSeen with evidence that its policy does not keep"


def test_an_erasure_is_on_record_leaves_no_key_in_any_file_and_every_proof_valid(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            await keep(child, CLEAR, b"another")
            one, _ = events(tmp_path, kind="finding")
            vault = sqlite3.connect(tmp_path / FILE_NAME)
            keys = [key for (key,) in vault.execute("SELECT key FROM keys ORDER BY number")]
            vault.close()
            with opened(tmp_path) as log:
                before = log.proofs.verify()
            assert isinstance(before, Verified)
            nobody = await order(child, EraseContent(by=ALICE, user="nobody", reason="x", number=7))
            assert nobody == ContentErased(count=0, number=7)
            refused = await order(child, EraseContent(by=ALICE))
            assert isinstance(refused, ContentRefused)
            answer = await order(child, EraseContent(by=ALICE, event=one["id"], reason="request of 3 May"))
            assert answer == ContentErased(count=1)
            raw = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("content.db"))
            assert [key[:16] in raw or key[-16:] in raw for key in keys] == [False, True]
            _, review = events(tmp_path, kind="review")
            assert review["operation"] == "evidence_erased"
            assert (review["user"], review["uid"], review["count"]) == ("alice", 1000, 1)
            assert (review["reason"], review["selected"]) == ("request of 3 May", {"event": one["id"]})
            with opened(tmp_path) as log:
                assert isinstance(log.proofs.verify(before.root), Verified)
                assert log.event(one["id"]) == one
            await order(child, EraseContent(by=ALICE, connection="flow-1", reason=""))
            assert await child.end() == 0
            assert child.errors() == ""

    run(scenario)
    with opened(tmp_path) as log:
        result = log.proofs.verify(signed_by=SignedBy(tuple(key for _, key in log.proofs.signers()), checks))
    assert isinstance(result, Verified)
    vault = Vault(tmp_path)
    assert vault.size() == 0
    vault.close()


def test_two_people_see_it_once_and_that_is_on_record_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            await keep(child, CLEAR)
            (found,) = events(tmp_path, kind="finding")
            event = found["id"]
            assert isinstance(await order(child, RequestUnmasking(by=ALICE, event="x", reason="r")), ContentRefused)
            asked = await order(child, RequestUnmasking(by=ALICE, event=event, reason="ticket 7"))
            assert isinstance(asked, UnmaskingRequested)
            assert (await shown(child, event, ALICE))[0].error == "nobody has agreed to it yet"
            alone = await order(child, ApproveUnmasking(by=Person(name="ALICE", uid=5), request=asked.request))
            assert "another person has to agree" in alone.error
            assert (await order(child, ApproveUnmasking(by=BOB, request="none"))).error.startswith("nobody has made")
            agreed = await order(child, ApproveUnmasking(by=BOB, request=asked.request))
            assert agreed == UnmaskingApproved(asked_by=ALICE, event=event)
            assert (await shown(child, event, BOB))[0].error == "you have not asked for it"
            assert await shown(child, event, ALICE) == (Unmasked(approved_by=BOB), CLEAR)
            again, nothing = await shown(child, event, ALICE)
            assert (again.error, nothing) == ("it has been shown once", b"")
            (known,) = (await order(child, UnmaskingsQuestion())).requests
            assert (known.by, known.approved_by, known.shown_s is not None) == (ALICE, BOB, True)
            there = await order(child, EvidenceQuestion(event=event))
            assert (there.requests, there.kept_s is not None, there.erased_s) == ((known,), True, None)
            assert await order(child, EvidenceQuestion(event="another")) == EvidenceAnswer()
            await order(child, EraseContent(by=ALICE, event=event))
            assert (await order(child, EvidenceQuestion(event=event))).erased_s is not None
            gone = await order(child, RequestUnmasking(by=ALICE, event=event, reason="once more"))
            assert gone.error.startswith("nothing is kept beside event")
            assert (await order(child, RequestUnmasking(event=event, reason="nobody"))).status == 125

    run(scenario)
    reviews = events(tmp_path, kind="review")
    assert [event["operation"] for event in reviews] == [
        "evidence_requested", "evidence_approved", "evidence_unmasked", "evidence_erased",
    ]  # fmt: skip
    people = {key: reviews[2][key] for key in ("requested_by", "approved_by", "reason", "user", "connection")}
    assert people == {
        "requested_by": "alice (uid 1000)", "approved_by": "bob (uid 1001)", "reason": "ticket 7", "user": "alice",
        "connection": "flow-1",
    }  # fmt: skip
    assert CLEAR.decode() not in str(events(tmp_path))


def test_what_has_its_time_behind_it_is_erased_and_counted_and_a_shorter_time_holds_at_once(tmp_path: Path) -> None:
    async def until_erased(count: int) -> None:
        while sum(event["count"] for event in said(tmp_path, operation="evidence_expired")) < count:
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with recorder(tmp_path, code=SOON) as child:
            await keep(child, CLEAR, CLEAR, keep_s=1)
            await keep(child, b"for ever")
            await until_erased(2)
            await asyncio.sleep(1.1)
            assert said(tmp_path, kind="review") == []
            assert await order(child, LimitContent(evidence_s=1, number=3)) == ContentLimited(number=3)
            await until_erased(3)

    run(scenario)


def test_after_a_kill_each_content_has_its_event_and_a_begun_erasure_is_finished(tmp_path: Path) -> None:
    async def first() -> None:
        async with recorder(tmp_path) as child:
            await keep(child, CLEAR, b"other")
            child.process.send_signal(signal.SIGKILL)

    run(first)
    one, other = events(tmp_path, kind="finding")
    vault = Vault(tmp_path)
    orphan = vault.find(one["id"])
    assert orphan is not None
    vault.keep([replace(orphan, id="lost", event="never-recorded")])
    vault.doom("begun", Wanted(event=other["id"]))
    vault.close()

    async def second() -> None:
        async with recorder(tmp_path) as child:
            while not said(tmp_path, operation="evidence_erased"):
                await asyncio.sleep(0.05)
            assert await child.end() == 0

    run(second)
    (fault,) = events(tmp_path, what="evidence_without_event")
    assert fault["count"] == 1
    vault = Vault(tmp_path)
    assert (vault.size(), vault.find("never-recorded"), vault.find(other["id"])) == (1, None, None)
    vault.close()


@pytest.mark.parametrize("spoil", ["vault", "key"])
def test_where_nothing_can_be_kept_the_finding_is_recorded_and_says_so(tmp_path: Path, spoil: str) -> None:
    (tmp_path / (FILE_NAME if spoil == "vault" else CONTENT_FILE_NAME)).mkdir()

    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            await keep(child, CLEAR, CLEAR)
            refused = await order(child, EraseContent(by=ALICE, event="x"))
            assert isinstance(refused, ContentRefused if spoil == "vault" else ContentErased)

    run(scenario)
    assert all("content" not in event for event in events(tmp_path, kind="finding"))
    assert len(events(tmp_path, kind="finding")) == 2
    faults = events(tmp_path, what="evidence_not_kept")
    assert sum(fault["count"] for fault in faults) == 2
    assert all("content." in fault["detail"] for fault in faults)


def test_whenever_a_recorder_is_killed_each_event_has_its_content_and_no_content_lacks_its_event(
    tmp_path: Path,
) -> None:
    acknowledged = 0

    async def killed() -> None:
        nonlocal acknowledged
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            gate.record(handed(keep_evidence_s=0))
            await gate.flushed()
            for number in range(400):
                worker.record(finding(clear=b"%d" % number))
            await asyncio.sleep(random.uniform(0.02, 0.25))
            child.process.send_signal(signal.SIGKILL)
            await worker.flushed()  # or it is gone, and no more is said
            acknowledged += worker.committed

    async def begun_again() -> None:
        async with recorder(tmp_path) as child:
            assert await child.end() == 0

    for _ in range(3):
        run(killed)
        vault = Vault(tmp_path)
        assert [event["id"] for event in events(tmp_path, kind="finding") if vault.find(event["id"]) is None] == []
        vault.close()
    run(begun_again)
    found = events(tmp_path, kind="finding")
    vault = Vault(tmp_path)
    assert [event["id"] for event in found if vault.find(event["id"]) is None] == []
    assert len(found) == vault.size() >= acknowledged
    vault.close()


def test_a_lost_key_is_told(tmp_path: Path) -> None:
    run(partial(_kept, tmp_path))
    (tmp_path / CONTENT_FILE_NAME).unlink()
    run(partial(_kept, tmp_path))
    (fault,) = events(tmp_path, what="evidence_unreadable")
    assert fault["count"] == 1


async def _kept(folder: Path) -> None:
    async with recorder(folder) as child:
        await keep(child, CLEAR)
        assert await child.end() == 0
