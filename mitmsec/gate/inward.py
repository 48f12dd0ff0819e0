"""Connections that came in and were led to the gate: what is else about them than about those that go out.

    peer ──► gate ── leg ──► listener          the peer is the client, the service it called is the origin

The policy is asked by the rules for incoming connections, about the peer's address and the service's port; TLS that is
to be decrypted, once more for the service whose key does it. No further addresses of a name are ever tried: a peer that
names somebody else's host must not be taken there.
"""

from __future__ import annotations

import socket
from typing import Protocol as Interface

from mitmsec.core.model import Action, Decision, Direction, Endpoint, Process, Value
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Shown
from mitmsec.gate.signals import Origin
from mitmsec.gate.terms import Decides


class Way(Interface):
    """How the gate reaches whom a connection was meant for."""

    @property
    def origin(self) -> Origin:
        """Whom it was meant for, and whose that is."""

    @property
    def is_ours(self) -> bool:
        """Whether that is anybody whom the gate is to look after."""

    def connect(self) -> socket.socket:
        """A socket on its way there; another one each time. Raises OSError."""

    def close(self) -> None:
        """The connection is over. Idempotent."""


class Ways(Interface):
    """Knows whom connections that came in were meant for."""

    def begin(self, accepted: socket.socket) -> Way:
        """Raises OSError."""


class Inward(Value, frozen=True):
    """A policy as one connection that comes in asks it (mitmsec.gate.terms.Decides)."""

    policy: Decides
    peer: Endpoint

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.policy.rules

    def can_judge(self, process: Process, direction: Direction = Direction.INBOUND) -> bool:
        return self.policy.can_judge(process, direction)

    def at_connect(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.INBOUND
    ) -> Decision | None:
        """None also where it is to be decrypted: whether there is a key for that, only the name can tell."""
        said = self.policy.at_connect(process, self._asked(remote), at_s, direction)
        return None if said is not None and said.action is Action.DECRYPT else said

    def at_silence(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.INBOUND
    ) -> tuple[Decision, bool]:
        return self.policy.at_silence(process, self._asked(remote), at_s, direction)

    def at_hello(
        self,
        process: Process,
        remote: Endpoint,
        at_s: float,
        *,
        shown: Shown,
        proven: bool = True,
        direction: Direction = Direction.INBOUND,
    ) -> Decision:
        asked = self._asked(remote)
        said = self.policy.at_hello(process, asked, at_s, shown=shown, proven=proven, direction=direction)
        return self.policy.with_key(said, remote, shown.name) if shown.is_tls else said

    def with_key(self, decision: Decision, called: Endpoint, name: str | None) -> Decision:
        return self.policy.with_key(decision, called, name)

    def _asked(self, service: Endpoint) -> Endpoint:
        return Endpoint(address=self.peer.address, port=service.port)
