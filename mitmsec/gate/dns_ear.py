"""Listens to DNS over TCP while it is relayed: a tee that keeps nothing, before the one of a capture if there is one.

What a name server says is handed on with no more in it than may be offered, unless the policy says `bypass`.

program ──► resolver     each piece: the capture's tee, then ours ─► whole messages ─► names (mitmsec.core.dns)
        ◄──              an answer is heard before the program gets it
"""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.core.dns_answers import DnsAnswers
from mitmsec.core.dns_frames import DnsFrames
from mitmsec.core.dns_offers import Offers
from mitmsec.core.model import Action, Direction
from mitmsec.gate.account import Account
from mitmsec.gate.relay import Relay, Tee

DNS_PORT = 53


def speaks_dns(about: Account) -> bool:
    """Whether a flow is one between a program that we look after and a name server."""
    return about.remote.port == DNS_PORT and about.direction is Direction.OUTBOUND and about.selected


def answers(about: Account, offers: Offers) -> DnsAnswers | None:
    """None: all that its name server says is to pass as it is."""
    done = about.done or (about.decision.action if about.decision else Action.BYPASS)
    return DnsAnswers(offers) if done is not Action.BYPASS and offers != Offers() else None


def listen(
    relay: Relay, hear: Callable[[bool, bytes], None], tap: Tee | None, limited: DnsAnswers | None = None
) -> None:
    """From the first byte that `relay` carries; `hear` and `tap` as below."""

    def heard(sent: bool, message: bytes) -> None:
        if sent and limited is not None:
            limited.asked(message)
        hear(sent, message)

    def enough() -> None:
        relay.copy_to(tap)
        if limited is not None and not limited.is_asked:
            relay.edit = None  # it holds nothing, and never will

    relay.tee = DnsEar(heard, tap, enough)
    relay.edit = limited.fed if limited is not None else None


class DnsEar:
    """A tee (mitmsec.gate.relay.Tee) for one flow."""

    def __init__(self, hear: Callable[[bool, bytes], None], tap: Tee | None, enough: Callable[[], None]) -> None:
        """`hear` is told whether the program sent a message, and the message; `enough` is called at the end of that."""
        self._hear, self._tap, self._enough = hear, tap, enough
        self._frames = {sent: DnsFrames() for sent in (True, False)}

    def take(self, sent: bool, data: bytes) -> bool:
        if self._tap is not None and not self._tap.take(sent, data):
            return False
        frames = self._frames[sent]
        for message in frames.fed(data):
            self._hear(sent, message)
        if frames.is_over:
            self._enough()
        return True

    def wait(self, resume: Callable[[], None]) -> bool:
        return self._tap is not None and self._tap.wait(resume)
