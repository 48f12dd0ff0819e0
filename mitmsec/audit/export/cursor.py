"""How far an export has come, in a form that survives restarts and notices another log.

A position is the last event that was looked at, whether it matched or not, with its hash in the tree: a log that was
moved away, cut back or written anew has another event there, or none.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.merkle import leaf_hash
from mitmsec.core.model import Value


class OtherLog(ValueError):
    """The log is not the one that a cursor is of; the text says why."""


class Position(Value, frozen=True):
    """Every event up to this one is done with."""

    seq: int = -1  # of the last event; -1: none yet
    leaf: str = ""  # its hash in the tree, hex


BEGINNING = Position()


class Cursor(Value, frozen=True):
    """What stands in the file."""

    to: str  # where the events went
    log: str  # the log's own name; empty: it had none
    at: Position
    version: Literal[1] = 1


def position_of(event: Fields) -> Position:
    """Where one is after `event`."""
    return Position(int(event["seq"]), leaf_hash(canonical(event)).hex())


def encoded(cursor: Cursor) -> bytes:
    """As a line of JSON."""
    return msgspec.json.encode(cursor, order="sorted") + b"\n"


def parsed(data: bytes) -> Cursor:
    """Raises ValueError."""
    return msgspec.json.decode(data, type=Cursor)


def check_log(cursor: Cursor, log: str) -> None:
    """That a log of this name is the cursor's. Raises OtherLog."""
    if cursor.log and log and cursor.log != log:
        raise OtherLog(f"the cursor is of the log {cursor.log}; this one is {log}")


def check_event(at: Position, event: Fields | None, newest: int) -> None:
    """That the event which the log has at a position is the one that was there. Raises OtherLog.

    An event that retention has removed says nothing; `newest` is the log's last, -1 where it is empty.
    """
    if newest < at.seq:
        raise OtherLog(
            f"{at.seq + 1} events were done with, and this log has {newest + 1}: it was cut back, or is another"
        )
    if at.seq >= 0 and event is not None and position_of(event) != at:
        raise OtherLog(f"event {at.seq} is not the one that was there: this is another log, or it was changed")
