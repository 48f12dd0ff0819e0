"""The line that a person sees when a run has ended: what became of its connections, and how to see them.

It goes to stderr, and only where stderr is a terminal or the line was asked for: a pipe holds the command's own bytes
and no others. Nothing here may change how the run ended.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime

from mitmsec.core.model import Action
from mitmsec.service.options import program
from mitmsec.service.run import Report
from mitmsec.service.state import DEFAULT, State

DONE = {Action.DECRYPT: "decrypted", Action.BYPASS: "bypassed", Action.BLOCK: "blocked", Action.CAPTURE: "captured"}


def is_wanted(asked: bool | None) -> bool:
    """As `--summary` or `--no-summary` says, else whether somebody watches."""
    return asked if asked is not None else sys.stderr is not None and sys.stderr.isatty()


def tell_summary(report: Report, state: State) -> None:
    """Write the line. What cannot be counted or written is left out: the run is over and its status stands."""
    if report.error:  # which has been told; the counts are not known then
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(summary(report, _counts(report, state), state) + "\n")
        sys.stderr.flush()


def summary(report: Report, counts: Mapping[str, int], state: State) -> str:
    """One line. `counts` is how many connections had which action."""
    parts = ", ".join(f"{counts[action]} {done}" for action, done in DONE.items() if counts.get(action))
    total = _number(report.connections, "connection") + (f" ({parts})" if parts else "")
    said = [total, _number(report.findings, "finding")]
    said += [_number(report.faults, "fault")] if report.faults else []
    if not report.connections and not report.faults:
        return "mitmsec: no connection was seen"
    where = "" if state.folder == DEFAULT else f" --state {shlex.quote(str(state.folder))}"
    return f"mitmsec: {', '.join(said)}; see {program()} audit list --session {report.session}{where}"


def _counts(report: Report, state: State) -> dict[str, int]:
    from mitmsec.audit import review

    with contextlib.suppress(review.NoLog, review.Unreadable), review.opened(state.log) as log:
        return log.counts(report.session, datetime.fromisoformat(report.started))
    return {}


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
