"""What the engine asks of the rest, as protocols: it never imports those who answer."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from mitmsec.audit.event import Seen
from mitmsec.core.inspection import Inspector
from mitmsec.core.known_service import KnownService
from mitmsec.core.messages import Flaw, FlowEnded
from mitmsec.core.model import OnFailure, Value


class Refused(Exception):
    """A certificate or a connection was asked for and is not to be had; the text says why."""


class LeafQuestion(Value, frozen=True):
    """One flow's leaf certificate: for which name, for which key, how long at most, and how it is to be flawed."""

    flow: str
    name: str
    public_key: bytes  # SubjectPublicKeyInfo, DER
    not_after_s: int | None = None  # the origin's own notAfter, Unix seconds
    flaw: Flaw | None = None


class Certifier(Protocol):
    """Has certificates made, at most once a flow."""

    async def chain(self, question: LeafQuestion) -> tuple[bytes, ...]:
        """DER certificates, leaf first, without the root. Raises Refused."""


class Defect(Protocol):
    """How an origin's certificate failed."""

    @property
    def flaw(self) -> Flaw: ...

    @property
    def text(self) -> str: ...


Judge = Callable[[Sequence[int]], Defect | None]
"""The gravest of OpenSSL's verification errors (X509_V_ERR_…), in our words; None for none."""


class Gate(Protocol):
    """Where flows come from, where further connections to a decided origin come from, and where flows end."""

    async def connect(self, flow: str) -> socket.socket:
        """Another connection to the origin that was decided for `flow`. Raises Refused."""

    def ended(self, flow: FlowEnded) -> None:
        """Both sockets of the flow are closed."""


class Recorder(Protocol):
    """Where events go. `record` never blocks and never raises."""

    def record(self, seen: Seen) -> None: ...

    @property
    def congested(self) -> bool:
        """Whoever can pause its source should, until `relieved`."""

    async def relieved(self) -> None: ...


class EngineSettings(Value, frozen=True):
    """What does not change while a worker lives."""

    on_failure: OnFailure
    capture: bool = False
    handshake_deadline_s: float = 30.0


class Collaborators:
    """Who answers. `inspectors` are by the name that stands in a decision's `inspect`."""

    __slots__ = ("certifier", "gate", "inspectors", "judge", "keys_pem", "recorder", "roots_pem", "services")

    def __init__(
        self,
        *,
        certifier: Certifier,
        gate: Gate,
        judge: Judge,
        recorder: Recorder,
        roots_pem: bytes,
        inspectors: Sequence[Inspector] = (),
        services: Sequence[KnownService] = (),
        keys_pem: bytes = b"",
    ) -> None:
        """`keys_pem`: those of `services`, one after the other; empty where nothing that comes in is decrypted."""
        self.certifier = certifier
        self.gate = gate
        self.judge = judge
        self.recorder = recorder
        self.roots_pem = roots_pem
        self.inspectors = {inspector.name: inspector for inspector in inspectors}
        self.services, self.keys_pem = services, keys_pem
