"""Which names the addresses have that a run's programs connect to, by the answers that they got from their resolvers.

    asked ──► open questions ── the same id, question, and both ends? ──► answered ──► address: its names, newest first

An answer counts only where a program of this run asked for it, so that whoever wants to put a name in here must do to
the program itself what DNS spoofing always had to. The names are what the program's resolver said, and a program may
choose its resolver: they name flows that show no name, and are compared with those that do. No rule is decided by them;
they can only fail to confirm the name that a bypass is owed to (`unproven_name`).
"""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum

from mitmsec.core.dns import DnsMessage
from mitmsec.core.model import Endpoint

QUESTIONS_LIMIT = 1024  # the oldest goes first
ANSWER_WITHIN_S = 30.0
ADDRESSES_LIMIT = 4096  # the one that was answered longest ago goes first
NAMES_LIMIT = 8  # of one address: those answered last
KEEP_LEAST_S = 600.0  # programs keep an address for longer than its time to live
KEEP_MOST_S = 86_400.0

type _Question = tuple[Endpoint, Endpoint, int, bytes, int]


class Agreement(StrEnum):
    """What the answers say to a name that a flow shows."""

    AGREE = "agree"  # it was given this address
    DISAGREE = "disagree"  # other names were, and this one was not
    UNKNOWN = "unknown"  # no name was given this address


class AddressNames:
    """Bounded, and forgets. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._open: OrderedDict[_Question, float] = OrderedDict()
        self._known: OrderedDict[str, dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def heard(self, local: Endpoint, server: Endpoint, message: DnsMessage, now_s: float) -> None:
        """A message between a program's socket and its resolver; which of them sent it, the message says."""
        question = (local, server, message.id, message.wire_name, message.kind)
        if not message.is_response:
            self._open[question] = now_s + ANSWER_WITHIN_S
            self._open.move_to_end(question)
            if len(self._open) > QUESTIONS_LIMIT:
                self._open.popitem(last=False)
        elif self._open.pop(question, now_s) > now_s:
            self._answered(message, now_s)

    def _answered(self, message: DnsMessage, now_s: float) -> None:
        name = message.name
        for one in message.addresses if name is not None else ():
            names = self._known.setdefault(one.address, {})
            self._known.move_to_end(one.address)
            until_s = now_s + min(max(one.ttl_s, KEEP_LEAST_S), KEEP_MOST_S)
            assert name is not None
            names[name] = max(names.pop(name, 0.0), until_s)
            if len(names) > NAMES_LIMIT:
                del names[next(iter(names))]
            if len(self._known) > ADDRESSES_LIMIT:
                self._known.popitem(last=False)

    def names(self, address: str, now_s: float) -> tuple[str, ...]:
        """The names that were given this address, the one that was answered last first."""
        known = self._known.get(address)
        if known is None:
            return ()
        for name in [name for name, until_s in known.items() if until_s <= now_s]:
            del known[name]
        if not known:
            del self._known[address]
        return tuple(reversed(known))


def agreement(shown: str, answered: tuple[str, ...]) -> Agreement:
    """What the names of a flow's address say to the one that it shows; both comparable (mitmsec.core.names)."""
    if shown in answered:
        return Agreement.AGREE
    return Agreement.DISAGREE if answered else Agreement.UNKNOWN
