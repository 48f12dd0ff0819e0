"""The log as commands read it: opened for who may, or the end of the command with the reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mitmsec.audit import review
from mitmsec.audit.criteria import parse_time
from mitmsec.audit.reading import Denied, NoLog, Unreadable
from mitmsec.audit.review import Review
from mitmsec.service.accounts import READERS_GROUP, readers_gid
from mitmsec.service.called import as_root, program, with_state
from mitmsec.service.options import EXIT_NOT_SO, EXIT_PRIVILEGE, fail
from mitmsec.service.state import State


def _instant(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else parse_time(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is neither RFC 3339 (2026-11-03T10:00:00Z) nor a span before now (10m, 2h, 3d)"
        ) from error


def instant_option(name: str, help_text: str) -> Callable[[Any], Any]:
    """A point in time, or a span before now."""
    return click.option(name, callback=_instant, metavar="TIME", help=help_text)


@contextmanager
def opened_log(folder: Path, *, verifies: bool = False, skips: bool = False) -> Iterator[Review]:
    """`verifies`: what is wrong with the file is not for another command to say. `skips`: what cannot be read is at
    the end, once all else has been shown.
    """
    try:
        with review.opened(State(folder).log, skips=skips) as log:
            yield log
            if log.unread:
                raise Unreadable(f"no longer what was written, and not shown: {numbers(log.unread)}")
    except Denied as error:
        fail(str(error), f"{who_may_read()}; try: {as_root()}", EXIT_PRIVILEGE)
    except NoLog as error:
        fail(str(error), "--state (or MITMSEC_STATE) names another state directory", EXIT_NOT_SO)
    except Unreadable as error:
        if verifies:
            raise
        again = f"`{program()} audit verify{with_state(State(folder))}`"
        fail(str(error), f"{again} says from which event on the log is not what was written", EXIT_NOT_SO)


def numbers(seqs: Collection[int]) -> str:
    """Of events, those that follow each other as one: events 3, 7-9."""
    ranges: list[list[int]] = []
    for seq in sorted(seqs):
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    told = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"event{'s' if len(seqs) > 1 else ''} {told}"


def who_may_read() -> str:
    if readers_gid():
        return f"root may, and the members of group {READERS_GROUP}"
    return f"root may, and the members of a group {READERS_GROUP}, which this machine does not have"
