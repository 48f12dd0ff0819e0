"""Whether a flow of QUIC can be decrypted, and what was learned of those that could not be.

What cannot is refused, so that its program falls back to TCP; there it is decrypted, mirrored, let pass or relayed as
the policy says. So whoever refused our certificate over QUIC, whoever's origin did not hold, and whoever was let pass
over TCP for such a reason, gets no QUIC for a while: the answer comes at once, and not after another handshake.
"""

from __future__ import annotations

from collections import OrderedDict

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Decision
from mitmsec.gate.learned import Kind, Learned
from mitmsec.gate.terms import Health

REFUSED_S = 3600.0
REFUSED_LIMIT = 1024
HELLO_LIMIT_BYTES = 16 << 10  # of one that goes to a worker in a message
HTTP3 = "h3"
HARMLESS = frozenset({Outcome.COMPLETED, Outcome.CLIENT_CLOSED, Outcome.BLOCKED, Outcome.FAULT})
"""Ends that say nothing about the next flow of the kind."""


class Decrypting:
    """Of all flows of a gate. What was learned longest ago makes room."""

    def __init__(self, health: Health, learned: Learned) -> None:
        self._health, self._learned = health, learned
        self._refused: OrderedDict[Kind, tuple[float, str]] = OrderedDict()

    @property
    def off(self) -> bool:
        """The kill switch has been thrown."""
        return self._health.off

    def obstacle(self, hello: ClientHello | None, decision: Decision, kind: Kind | None, now_s: float) -> str:
        """Why it cannot be decrypted; "" where it can."""
        if hello is None or hello.sni is None:
            return "its hello names no host"
        if HTTP3 not in hello.alpn:
            return "it offers no HTTP/3"
        if len(hello.raw) > HELLO_LIMIT_BYTES:
            return "its hello is too long"
        if decision.identity:
            return "no client's certificate is shown over QUIC"
        if not self._health.recording:
            return "nobody could put it on record"
        if not self._health.signing:
            return "there is nobody to make a certificate"
        return self._known(kind, now_s)

    def _known(self, kind: Kind | None, now_s: float) -> str:
        if kind is None:
            return ""
        bypass = self._learned.find(kind, now_s)
        if bypass is not None:
            return f"that was learned not to work: {bypass.why}"
        until_s, why = self._refused.get(kind, (0.0, ""))
        return f"the last time it failed: {why}" if now_s < until_s else ""

    def ended(self, kind: Kind | None, ended: FlowEnded, outcome: Outcome, now_s: float) -> None:
        """How a flow of `kind` that was decrypted has ended."""
        if kind is None or ended.was_heard or outcome in HARMLESS:
            return
        self._refused.pop(kind, None)
        self._refused[kind] = now_s + REFUSED_S, outcome.value
        if len(self._refused) > REFUSED_LIMIT:
            self._refused.popitem(last=False)

    def forget(self) -> None:
        """Another policy: everything is tried again."""
        self._refused.clear()
