"""What the engine asks of the rest, as protocols: it never imports those who answer."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mitmsec.audit.event import Seen
from mitmsec.core.identity import Identity
from mitmsec.core.inspection import AnyInspector
from mitmsec.core.known_service import KnownService
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw, FlowEnded, Upgrading
from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.core.model import Decision, OnFailure, Value
from mitmsec.core.origin_proof import Proof


class Refused(Exception):
    """A certificate or a connection was asked for and is not to be had; the text says why."""


class LeafQuestion(Value, frozen=True):
    """One flow's leaf: for which name, with which kind of key, how long at most, and how it is to be flawed."""

    flow: str
    name: str
    key: LeafKeyKind = LeafKeyKind.P256
    not_after_s: int | None = None  # the origin's own notAfter, Unix seconds
    flaw: Flaw | None = None


class Leaf(Value, frozen=True):
    """DER certificates, the leaf first, without the root; and the leaf's key (PKCS #8, DER)."""

    chain: tuple[bytes, ...]
    key: bytes


class Certifier(Protocol):
    """Has certificates made, at most once a flow."""

    async def leaf(self, question: LeafQuestion) -> Leaf:
        """The leaf, as `question` wants it. Raises Refused."""


class Defect(Protocol):
    """How an origin's certificate failed."""

    @property
    def flaw(self) -> Flaw: ...

    @property
    def text(self) -> str: ...


class Judgement(Protocol):
    """What an origin's proof is worth. `note`: what is to be recorded of one that holds."""

    @property
    def defect(self) -> Defect | None: ...

    @property
    def note(self) -> str | None: ...


Judge = Callable[[Proof, Decision], Awaitable[Judgement]]
"""By what the rule that decided says itself, where it does."""


class Encapsulation(Protocol):
    """One key of ML-KEM-768, for a hybrid key exchange."""

    @property
    def public(self) -> bytes: ...

    def shared(self, ciphertext: bytes) -> bytes:
        """The secret in an answer. Raises ValueError."""


class SealedContent(Protocol):
    """One item for the quarantine. `preamble` goes first."""

    @property
    def preamble(self) -> bytes: ...

    def sealed(self, piece: bytes, *, is_last: bool) -> bytes:
        """The next piece (mitmsec.core.quarantine.in_pieces)."""


class Sealing(Protocol):
    """Seals content to people; nobody here can open it again."""

    def begin(self, item: str, content_bytes: int, *, is_whole: bool) -> SealedContent: ...


class Gate(Protocol):
    """Where flows come from, where further connections to a decided origin come from, and where flows end."""

    async def connect(self, flow: str) -> socket.socket:
        """Another connection to the origin that was decided for `flow`. Raises Refused."""

    def ended(self, flow: FlowEnded) -> None:
        """Both sockets of the flow are closed."""

    def upgrading(self, flow: Upgrading) -> None:
        """Both are closed here, and the flow goes on elsewhere."""


class Records(Protocol):
    """Where events go."""

    def record(self, seen: Seen) -> None:
        """Never blocks and never raises."""


class Recorder(Records, Protocol):
    """Where events go, and when there is room for them."""

    @property
    def congested(self) -> bool:
        """Whoever can pause its source should, until `relieved`."""

    async def relieved(self) -> None: ...


class EngineSettings(Value, frozen=True):
    """What does not change while a worker lives."""

    on_failure: OnFailure
    capture: bool = False
    quic: bool = False  # it is decrypted, too
    handshake_deadline_s: float = 30.0


class Collaborators:
    """Who answers. `inspectors` are by the name that stands in a decision's `inspect`."""

    __slots__ = (
        "addons",
        "certifier",
        "encapsulation",
        "gate",
        "identities",
        "inspectors",
        "judge",
        "keys_pem",
        "recorder",
        "roots_pem",
        "sealing",
        "services",
    )

    def __init__(
        self,
        *,
        certifier: Certifier,
        gate: Gate,
        judge: Judge,
        recorder: Recorder,
        roots_pem: bytes,
        inspectors: Sequence[AnyInspector] = (),
        services: Sequence[KnownService] = (),
        identities: Sequence[Identity] = (),
        keys_pem: bytes = b"",
        addons: Sequence[MitmproxyAddon] = (),
        sealing: Sealing | None = None,
        encapsulation: Callable[[], Encapsulation | None] = lambda: None,
    ) -> None:
        """`keys_pem`: those of `identities`, then of `services`, one after the other; empty where none are needed.

        `encapsulation` makes a key for each handshake over QUIC, where it can.
        """
        self.addons = addons
        self.certifier = certifier
        self.encapsulation = encapsulation
        self.gate = gate
        self.judge = judge
        self.recorder = recorder
        self.roots_pem = roots_pem
        self.sealing = sealing
        self.inspectors = {inspector.name: inspector for inspector in inspectors}
        self.identities, self.services, self.keys_pem = identities, services, keys_pem
