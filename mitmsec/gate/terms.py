"""What holds for all flows of a run: its terms, its policy, and who is there to work with."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from mitmsec.core.dns_offers import Offers
from mitmsec.core.model import Decision, Direction, Endpoint, OnFailure, Process, Value
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Shown


class Terms(Value, frozen=True):
    """What holds for every flow of a run. All times in seconds."""

    on_failure: OnFailure
    policy: str = ""  # the fingerprint of the policy that decides, for the record
    capture: bool = False  # somebody keeps the bytes of captured flows
    offers: Offers = Offers()  # what DNS answers may offer programs
    decrypts_quic: bool = False  # else what of it a rule would have decrypted passes unread
    probes: bool = False  # an origin can be asked for its certificate (mitmsec.gate.origin_probe)
    owner_deadline_s: float = 2.0  # for the supervisor to say whose a connection is
    hello_deadline_s: float = 0.3  # for the client's first byte, before a decision is made without a name
    hello_end_deadline_s: float = 5.0  # for the rest of a hello once it has begun
    upgrade_deadline_s: float = 30.0  # for a hello once both ends have agreed to TLS; as long as a worker's handshake
    staff_deadline_s: float = 1.0  # for a worker, while none lives: `on_failure` is to hold within a second
    left_deadline_s: float = 60.0  # for a worker to end a flow whose client has ended, and on which nothing moves


class Decides(Protocol):
    """The policy, as far as a flow asks it: mitmsec.core.policy.Policy."""

    @property
    def rules(self) -> tuple[Rule, ...]: ...

    def can_judge(self, process: Process, direction: Direction = Direction.OUTBOUND) -> bool: ...

    def at_connect(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.OUTBOUND
    ) -> Decision | None: ...

    def at_silence(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.OUTBOUND
    ) -> tuple[Decision, bool]: ...

    def at_hello(
        self,
        process: Process,
        remote: Endpoint,
        at_s: float,
        *,
        shown: Shown,
        proven: bool = True,
        direction: Direction = Direction.OUTBOUND,
    ) -> Decision: ...

    def with_key(self, decision: Decision, called: Endpoint, name: str | None) -> Decision: ...


class Health(Protocol):
    """Who is there to work with, now."""

    @property
    def off(self) -> bool:
        """The kill switch has been thrown: nothing is to be decrypted."""

    @property
    def recording(self) -> bool:
        """What happens is put on record."""

    @property
    def signing(self) -> bool:
        """Certificates can be had."""


class State(Enum):
    """Where a flow is; see the drawing in mitmsec.gate.flow."""

    OWNER = auto()
    FIRST = auto()
    STAFF = auto()
    RELAYED = auto()
    HANDED = auto()
    ENDED = auto()


class Dialling(Enum):
    """How far the origin's leg is."""

    NOT = auto()
    TRYING = auto()
    DONE = auto()
    FAILED = auto()
