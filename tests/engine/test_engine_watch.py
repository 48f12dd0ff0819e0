"""Inspectors under watch: what is recorded, and what ends a flow."""

from __future__ import annotations

import asyncio
import gzip
import random
from typing import Any

import pytest
from engine_world import DECISION, Recorder, Word
from msgspec.structs import replace

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Decision, OnFailure, OnFinding
from mitmsec.engine import limited as limiting
from mitmsec.engine import watch as watching
from mitmsec.engine.watch import Blocked, Watch
from mitmsec_addons.registry import build

PART = Part(flow="flow-1", kind=PartKind.BODY, sent=True, host="a.test")


def watch(
    recorder: Recorder, *, on_finding: OnFinding, on_failure: OnFailure = OnFailure.OPEN, named: str = "word"
) -> Watch:
    decision = Decision(action=DECISION.action, rule="r", reason="r", inspect=(named,), on_finding=on_finding)
    return Watch("flow-1", decision, {"word": Word()}, on_failure, recorder)


def recorder_of() -> Recorder:
    async def make() -> Recorder:
        return Recorder()

    return asyncio.run(make())


@pytest.mark.parametrize("codings", ["", "identity"])
def test_a_finding_is_told_once_whatever_the_slices(codings: str) -> None:
    recorder = recorder_of()
    reading = watch(recorder, on_finding=OnFinding.ALERT).open(PART, codings)
    assert reading is not None
    for byte in b"the SECRET and the SECRET":
        reading.feed(bytes((byte,)))
    reading.close()
    reading.close()
    reading.feed(b"SECRET")
    (seen,) = recorder.findings
    assert (seen.flow, seen.verdict) == ("flow-1", OnFinding.ALERT)


@pytest.mark.parametrize(("kept_s", "clear"), [(None, b""), (0, b"SECRET"), (60, b"SECRET")])
def test_what_was_found_leaves_the_worker_only_where_the_policy_keeps_it_and_never_inside_the_finding(
    kept_s: int | None, clear: bytes
) -> None:
    recorder = recorder_of()
    decision = replace(DECISION, inspect=("word",), on_finding=OnFinding.BLOCK, keep_evidence_s=kept_s)
    made = Watch("flow-1", decision, {"word": Word()}, OnFailure.OPEN, recorder)
    with pytest.raises(Blocked) as blocked:
        made.look(PART, b"the SECRET of it")
    (seen,) = recorder.findings
    assert seen.clear.value == clear
    assert blocked.value.finding is not None
    assert seen.finding.clear.value == blocked.value.finding.clear.value == b""
    assert "SECRET" not in f"{seen} {blocked.value!r}"


class Counts(Word):
    """Counts calls."""

    calls = 0

    def open(self, part: Part) -> Any:
        reading: Any = super().open(part)
        feed = reading.feed

        def counted(data: bytes) -> Any:
            self.calls += 1
            return feed(data)

        reading.feed = counted
        return reading


def test_pieces_are_joined_before_an_inspector_is_asked() -> None:
    word, recorder = Counts(), recorder_of()
    decision = Decision(action=DECISION.action, rule="r", reason="r", inspect=("word",))
    made = Watch("flow-1", decision, {"word": word}, OnFailure.OPEN, recorder)
    reading = made.open(PART)
    assert reading is not None
    for _ in range(10_000):
        reading.feed(b"x")
    assert (word.calls, bool(made.unread)) == (0, True)
    made.settle()
    assert (word.calls, bool(made.unread)) == (1, False)
    for _ in range(3 * (watching.JOIN_BYTES // 100 + 1)):
        reading.feed(b"x" * 100)
    assert word.calls == 4
    reading.close()
    assert len(word.content("body", sent=True)[0]) == 10_000 + 3 * (watching.JOIN_BYTES // 100 + 1) * 100


def test_what_was_decoded_counts_when_the_rest_cannot_be() -> None:
    recorder = recorder_of()
    reading = watch(recorder, on_finding=OnFinding.ALERT).open(PART, "gzip")
    assert reading is not None
    packed = gzip.compress(b"the SECRET" + random.Random(1).randbytes(5000))
    reading.feed(packed[:2000])
    reading.feed(b"\xff" * 5000)
    assert [seen.verdict for seen in recorder.findings] == [OnFinding.ALERT]
    assert [seen.what for seen in recorder.faults] == ["not_inspected"]


@pytest.mark.parametrize(
    ("on_finding", "on_failure", "prompt"),
    [
        (OnFinding.ALERT, OnFailure.OPEN, False),
        (OnFinding.BLOCK, OnFailure.OPEN, True),
        (OnFinding.ALERT, OnFailure.CLOSED, True),
    ],
)
def test_inspectors_may_take_their_time_only_where_nothing_ends_the_flow(
    on_finding: OnFinding, on_failure: OnFailure, prompt: bool
) -> None:
    assert watch(recorder_of(), on_finding=on_finding, on_failure=on_failure).prompt is prompt


def test_block_raises_after_recording() -> None:
    recorder = recorder_of()
    reading = watch(recorder, on_finding=OnFinding.BLOCK).open(PART)
    assert reading is not None
    reading.feed(b"SECRET")
    with pytest.raises(Blocked) as caught:
        reading.close()
    assert caught.value.finding is not None
    assert len(recorder.findings) == 1


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_an_inspector_that_is_not_there(on_failure: OnFailure) -> None:
    recorder = recorder_of()
    if on_failure is OnFailure.CLOSED:
        with pytest.raises(Blocked):
            watch(recorder, on_finding=OnFinding.ALERT, on_failure=on_failure, named="unknown")
    else:
        assert not watch(recorder, on_finding=OnFinding.ALERT, named="unknown")
    assert [(fault.what, fault.failed) for fault in recorder.faults] == [("not_inspected", on_failure)]


def test_what_lies_in_an_archive_ends_a_flow_and_what_cannot_be_read_there_ends_it_where_failures_close() -> None:
    recorder = recorder_of()
    decision = Decision(
        action=DECISION.action, rule="r", reason="r", inspect=("archives", "word"), on_finding=OnFinding.BLOCK
    )
    inspectors = {"archives": build("archives", ()), "word": Word()}

    def read(data: bytes, on_failure: OnFailure) -> None:
        reading = Watch("flow-1", decision, inspectors, on_failure, recorder).open(PART)
        assert reading is not None
        reading.feed(data)
        reading.close()

    with pytest.raises(Blocked) as blocked:
        read(gzip.compress(gzip.compress(b"the SECRET")), OnFailure.OPEN)
    assert blocked.value.finding is not None
    cut_off = gzip.compress(b"nothing")[:-4]
    read(cut_off, OnFailure.OPEN)
    with pytest.raises(Blocked, match=r"^not_inspected: archives: unread, cut off \(request.body!content\)$"):
        read(cut_off, OnFailure.CLOSED)
    assert [fault.what for fault in recorder.faults] == ["not_inspected", "not_inspected"]


class Slow(Word):
    """Never done with anything."""

    def open(self, part: Part) -> Any:
        reading: Any = super().open(part)

        def endless(_: bytes) -> Any:
            while True:
                pass

        reading.feed = endless
        return reading


def test_an_inspector_that_takes_too_long_switches_off_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "CALL_LIMIT_S", 0.02)
    recorder = recorder_of()
    decision = Decision(action=DECISION.action, rule="r", reason="r", inspect=("slow", "word"))
    reading = Watch("flow-1", decision, {"slow": Slow("slow"), "word": Word()}, OnFailure.OPEN, recorder).open(PART)
    assert reading is not None
    reading.feed(b"nothing")
    reading.settle()
    reading.feed(b"the SECRET")
    reading.close()
    assert len(recorder.findings) == 1
    assert [(fault.what, fault.detail) for fault in recorder.faults] == [
        ("inspector_failed", "slow: timeout, interrupted after 0.02 s")
    ]
