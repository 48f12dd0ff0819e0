"""Where a flow of QUIC is, and what it orders. Values only; `quic_flow` thinks, `quic_relay` acts."""

from __future__ import annotations

from enum import Enum, auto

from mitmsec.audit.event import Seen
from mitmsec.core.messages import HandOver
from mitmsec.core.model import OnFailure, Value


class State(Enum):
    OPENING = auto()
    STAFF = auto()
    HANDED = auto()
    PASSING = auto()
    REFUSED = auto()
    ENDED = auto()


class Forward(Value, frozen=True):
    """To the origin."""

    datagram: bytes


class Answer(Value, frozen=True):
    """To the client, from us."""

    datagram: bytes


class Deliver(Value, frozen=True):
    """To the worker, from the client."""

    datagram: bytes


class Staff(Value, frozen=True):
    """Find a worker: say `staffed`, or `unstaffed`."""


class Hand(Value, frozen=True):
    """Give it to `worker`: the signer is told, then it gets the order with an end of each leg."""

    worker: int
    order: HandOver


class LetGo(Value, frozen=True):
    """No worker is to hear of it any more."""


class Record(Value, frozen=True):
    seen: Seen


class Report(Value, frozen=True):
    """A fault."""

    what: str
    failed: OnFailure
    detail: str = ""


type Command = Forward | Answer | Deliver | Staff | Hand | LetGo | Record | Report
