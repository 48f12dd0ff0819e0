"""What a person sees when a run has ended: what became of its connections, and how to see them.

The line goes to stderr, and only where stderr is a terminal or the line was asked for: a pipe holds the command's own
bytes and no others. What must not pass unnoticed, children that live on, is said in a pipe, too. Nothing here may
change how the run ended.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import assert_never

from mitmsec.audit.event import Kind, Outcome
from mitmsec.core.model import Action
from mitmsec.service.called import program, with_state
from mitmsec.service.run import Report
from mitmsec.service.state import State

DONE = {Action.DECRYPT: "decrypted", Action.BYPASS: "bypassed", Action.BLOCK: "blocked", Action.CAPTURE: "captured"}
LEFT = "left by the program"
CUT = "cut"
UNSEEN = "UDP unseen"
BY_A_FINDING = "stopped by a finding"
NOT_KEPT = (" captured", " relayed unread (kept only with --capture)")


CAPTURE_FAILED = "capture_failed"
CAPTURE_LACKS = {"capture_incomplete": "connection", "capture_lost": "piece"}  # faults, and what is not in the file


def is_wanted(asked: bool | None) -> bool:
    """As `--summary` or `--no-summary` says, else whether somebody watches."""
    return asked if asked is not None else sys.stderr is not None and sys.stderr.isatty()


def tell_survivors(report: Report) -> None:
    """Say that children of the command live on, unseen from now on."""
    if report.survivors:
        lives = "lives" if report.survivors == 1 else "live"
        count = _number(report.survivors, "process", "es")
        say(f"mitmsec: {count} {lives} on, no longer diverted; --wait stays with them")


def tell_summary(report: Report, state: State, *, keeps: bool = False) -> None:
    """Write the line. What cannot be counted or written is left out: the run is over and its status stands.

    `keeps`: what was captured went to a file.
    """
    if report.connections is not None:  # else the report's error has been told
        counts, stopped = _counts(report, state)
        say(summary(report, counts, state, stopped=stopped, keeps=keeps))


def summary(
    report: Report,
    counts: Mapping[tuple[str, str], int],
    state: State,
    *,
    stopped: int = 0,
    keeps: bool = True,
) -> str:
    """One line. `counts` is how many connections had which action and outcome; empty where that is not known.

    `stopped` requests were answered by us because of a finding, on connections that went on.
    """
    connections = sum(counts.values()) or report.connections or 0
    if not connections and not report.faults:
        return "mitmsec: no connection was seen"
    became = [part if keeps else part.replace(*NOT_KEPT) for part in _became(counts)]
    total = _number(connections, "connection") + (f": {', '.join(became)}" if counts else "")
    said = [_number(report.findings or 0, "finding")]
    said += [f"{_number(stopped, 'request')} stopped"] if stopped else []
    said += [_number(report.faults, "fault")] if report.faults else []
    see = f"{program()} audit list --session {report.session}{with_state(state)}"
    return f"mitmsec: {total}; {', '.join(said)}; see {see}"


def _became(counts: Mapping[tuple[str, str], int]) -> list[str]:
    """What was done, then what failed: `2 decrypted`, `1 failed (decrypt: the origin reset it)`."""
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for (action, outcome), count in counts.items():
        word, cause = _end(action, outcome)
        done[word] += 0 if cause else count
        failed[cause] += count if cause else 0
    order = [*DONE.values(), BY_A_FINDING, LEFT, CUT, UNSEEN]
    parts = [f"{done[word]} {word}" for word in sorted(+done, key=order.index)]
    if causes := sorted(+failed):
        told = [f"{failed[cause]} {cause}" if len(causes) > 1 else cause for cause in causes]
        parts.append(f"{failed.total()} failed ({'; '.join(told)})")
    return parts


def _end(action: str, outcome: str) -> tuple[str, str]:
    """What was done with a connection, or what was tried and why it failed."""
    try:
        tried, ended = Action(action), Outcome(outcome)
    except ValueError:  # an event of a later version
        return "", f"{action}: {outcome}"
    done = DONE[tried]
    match ended:
        case Outcome.COMPLETED | Outcome.OPEN:
            return done, ""
        case Outcome.BLOCKED:
            return (done if tried is Action.BLOCK else BY_A_FINDING), ""
        case Outcome.CLIENT_CLOSED:
            return LEFT, ""
        case Outcome.CUT:
            return CUT, ""
        case Outcome.UNSEEN:
            return UNSEEN, ""
        case (
            Outcome.CLIENT_REJECTED
            | Outcome.FAULT
            | Outcome.MALFORMED
            | Outcome.ORIGIN_CERTIFICATE
            | Outcome.ORIGIN_REFUSED
            | Outcome.ORIGIN_RESET
            | Outcome.ORIGIN_TIMEOUT
            | Outcome.ORIGIN_UNREACHABLE
            | Outcome.STRANGER
        ):
            return "", f"{tried.value}: {WHY[ended]}"
    assert_never(ended)


WHY = {
    Outcome.CLIENT_REJECTED: "the program did not accept our certificate",
    Outcome.FAULT: "a fault of mitmsec",
    Outcome.MALFORMED: "no TLS or HTTP that can be read",
    Outcome.ORIGIN_CERTIFICATE: "the origin's certificate is not valid",
    Outcome.ORIGIN_REFUSED: "the origin refused",
    Outcome.ORIGIN_RESET: "the origin reset it",
    Outcome.ORIGIN_TIMEOUT: "the origin did not answer",
    Outcome.ORIGIN_UNREACHABLE: "the origin cannot be reached",
    Outcome.STRANGER: "no hook had diverted it",
}


def _counts(report: Report, state: State) -> tuple[dict[tuple[str, str], int], int]:
    from mitmsec.audit import reading, review

    since = datetime.fromisoformat(report.started)
    with contextlib.suppress(reading.NoLog, reading.Unreadable), review.opened(state.log) as log:
        return log.counts(report.session, since), log.stopped(report.session, since)
    return {}, 0


def capture_doubt(report: Report, state: State) -> str:
    """What is missing in the run's capture file, as the log says; empty where nothing is."""
    from mitmsec.audit import reading, review
    from mitmsec.audit.criteria import Filter

    since = datetime.fromisoformat(report.started)
    wanted = Filter(kind=Kind.FAULT, session=report.session, since=since)
    with contextlib.suppress(reading.NoLog, reading.Unreadable), review.opened(state.log) as log:
        counts: Counter[str] = Counter()
        for event in log.events(wanted):
            if event.get("what") == CAPTURE_FAILED:
                return f"the capture ended before the run did: {event.get('detail')}"
            counts[str(event.get("what"))] += int(event.get("count", 1))
        lacks = [_number(count, what) for key, what in CAPTURE_LACKS.items() if (count := counts[key])]
        if lacks:
            return f"the capture file is not complete: it lacks {' and '.join(lacks)}"
    return ""


def say(line: str) -> None:
    """Write `line` to stderr; where that has gone, the run goes on all the same."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody is there to read it
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _number(count: int, what: str, plural: str = "s") -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else plural}"
