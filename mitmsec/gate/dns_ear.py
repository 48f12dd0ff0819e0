"""Listens to DNS over TCP while it is relayed: a tee that keeps nothing, before the one of a capture if there is one.

program ──► resolver     each piece: the capture's tee, then ours ─► whole messages ─► names (mitmsec.core.dns)
        ◄──              an answer is heard before the program gets it
"""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.core.dns_frames import DnsFrames
from mitmsec.core.model import Direction
from mitmsec.gate.account import Account
from mitmsec.gate.relay import Tee

DNS_PORT = 53


def speaks_dns(about: Account) -> bool:
    """Whether a flow is one between a program that we look after and a name server."""
    return about.remote.port == DNS_PORT and about.direction is Direction.OUTBOUND and about.selected


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
