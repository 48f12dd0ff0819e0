"""Inspectors under watch: what is recorded, and what ends a flow."""

from __future__ import annotations

import asyncio

import pytest
from engine_world import DECISION, Recorder, Word

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Decision, OnFailure, OnFinding
from mitmsec.engine import watch as watching
from mitmsec.engine.watch import Blocked, TooLong, Watch, limited

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


def test_block_raises_after_recording() -> None:
    recorder = recorder_of()
    reading = watch(recorder, on_finding=OnFinding.BLOCK).open(PART)
    assert reading is not None
    with pytest.raises(Blocked) as caught:
        reading.feed(b"SECRET")
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


def test_a_call_that_does_not_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "CALL_LIMIT_S", 0.05)

    def endless() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    with pytest.raises(TooLong):
        limited(endless)
    assert limited(lambda: "after that") == "after that"
