from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mitmsec.core.inspecting import FaultKind, Guarded, Inspected, InspectorFault, TooLong
from mitmsec.core.inspection import Inspection, Part, PartKind
from mitmsec.core.model import Finding, Severity

PART = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Scripted:
    """An inspector and its inspection, made of functions."""

    def __init__(
        self,
        name: str,
        feed: Callable[[bytes], Any] = lambda data: (),
        close: Callable[[], Any] = lambda: (),
        opens: Callable[[Part], bool] = lambda part: True,
    ) -> None:
        self.name = name
        self._feed, self._close, self._opens = feed, close, opens
        self.calls: list[bytes | None] = []

    def open(self, part: Part) -> Inspection | None:
        return self if self._opens(part) else None

    def feed(self, data: bytes) -> Sequence[Finding]:
        self.calls.append(data)
        return self._feed(data)  # type: ignore[no-any-return]

    def close(self) -> Sequence[Finding]:
        self.calls.append(None)
        return self._close()  # type: ignore[no-any-return]


def finding(summary: str) -> Finding:
    return Finding(detector="d", severity=Severity.LOW, confidence=1.0, summary=summary, evidence="", location="x")


def guarded(*inspectors: Scripted, clock: Clock | None = None) -> Guarded:
    return Guarded(inspectors, PART, clock=clock or Clock(), budget_s=1.0)


def boom(*_: object) -> Any:
    raise LookupError("the password is hunter2")


def test_findings_of_all_inspections_come_back_from_feed_and_close() -> None:
    parts = guarded(
        Scripted("a", feed=lambda data: [finding(data.decode())]),
        Scripted("b", close=lambda: (finding("end"),)),
        Scripted("c", opens=lambda part: False),
    )
    assert not parts.idle
    assert parts.feed(b"one") == Inspected(findings=(finding("one"),))
    assert parts.close() == Inspected(findings=(finding("end"),))
    assert parts.idle


def test_nobody_to_ask_is_idle() -> None:
    parts = guarded(Scripted("a", opens=lambda part: False))
    assert parts.idle
    assert parts.feed(b"x") == parts.close() == Inspected()


def test_an_exception_is_a_fault_without_content_and_others_go_on() -> None:
    bad, good = Scripted("bad", feed=boom), Scripted("good", feed=lambda data: [finding("seen")])
    parts = guarded(bad, good)
    fault = InspectorFault(inspector="bad", kind=FaultKind.ERROR, detail="LookupError")
    assert parts.feed(b"1") == Inspected(findings=(finding("seen"),), faults=(fault,))
    assert parts.feed(b"2") == Inspected(findings=(finding("seen"),))
    assert bad.calls == [b"1"]


def test_an_exception_at_the_end_is_a_fault_too() -> None:
    [fault] = guarded(Scripted("bad", close=boom)).close().faults
    assert fault.detail == "LookupError"


def test_a_fault_while_opening_is_told_once_by_the_first_call() -> None:
    parts = guarded(Scripted("bad", opens=boom))
    idle = [parts.idle]
    assert [fault.inspector for fault in parts.feed(b"").faults] == ["bad"]
    assert [*idle, parts.idle] == [False, True]
    assert parts.close() == Inspected()


@pytest.mark.parametrize("answer", [None, 7, ["text"]])
def test_an_answer_that_is_no_findings_is_a_fault(answer: object) -> None:
    [fault] = guarded(Scripted("odd", feed=lambda data: answer)).feed(b"x").faults
    assert (fault.kind, fault.detail) == (FaultKind.ERROR, "TypeError")


def test_an_answer_that_raises_only_when_read_is_a_fault() -> None:
    [fault] = guarded(Scripted("lazy", feed=lambda data: (boom() for _ in data))).feed(b"x").faults
    assert fault.detail == "LookupError"


def test_time_adds_up_over_a_part_and_findings_made_too_late_still_count() -> None:
    clock = Clock()

    def slow(data: bytes) -> list[Finding]:
        clock.now_s += 0.6
        return [finding("true all the same")]

    parts = guarded(Scripted("slow", feed=slow), clock=clock)
    assert parts.feed(b"1").faults == ()
    second = parts.feed(b"2")
    assert second.findings == (finding("true all the same"),)
    assert second.faults == (
        InspectorFault(inspector="slow", kind=FaultKind.TIMEOUT, detail="used 1.200 s of 1.000 s"),
    )
    assert parts.idle


@pytest.mark.parametrize("when", ["opens", "feed", "close"])
def test_one_that_is_interrupted_fails_alone_and_is_named(when: str) -> None:
    def interrupted(*_: object) -> Any:
        raise TooLong("interrupted after 1 s")

    asked: list[str] = []

    def limited(call: Callable[[], Any]) -> Any:
        asked.append("")
        return call()

    doing: dict[str, Any] = {when: interrupted}
    good = Scripted("good", feed=lambda data: [finding("seen")])
    parts = Guarded((Scripted("slow", **doing), good), PART, clock=Clock(), budget_s=1.0, limited=limited)
    told = [parts.feed(b"1"), parts.feed(b"2"), parts.close()]
    assert [one.findings for one in told] == [(finding("seen"),), (finding("seen"),), ()]
    fault = InspectorFault(inspector="slow", kind=FaultKind.TIMEOUT, detail="interrupted after 1 s")
    assert [one.faults for one in told] == [
        (fault,) if when != "close" else (),
        (),
        (fault,) if when == "close" else (),
    ]
    assert len(asked) == {"opens": 5, "feed": 6, "close": 8}[when]
