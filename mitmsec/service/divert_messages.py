"""What the supervisor and a diverter say to each other.

supervisor ⇄ diverter   DiverterSettings, Stall, Change, Detach, Close → · ← Ready | DiverterRefused,
                        then NotDiverted, DiverterFault, DiverterStatus, at last AllTold
"""

from __future__ import annotations

from mitmsec.core.messages import Message, Ready
from mitmsec.core.model import Endpoint, OnFailure, Process, Quic, Transport


class DiverterSettings(Message, frozen=True):
    """fds: the eventfd of the gate's heartbeat, the teller's end of the gate's channel of expected flows; under a
    standing selection also the maps of verdicts and of runs' cgroups (mitmsec_redirect.steps.Selection).
    """

    cgroup: str  # whose sockets are diverted, and those of all cgroups below
    gate_port: int
    local_ports: tuple[int, int]  # first and last, of the gate's own connections
    on_failure: OnFailure
    quic: Quic
    is_standing: bool = False
    everything: bool = False  # under a standing selection: whoever has no verdict is selected too


class DiverterRefused(Message, frozen=True):
    """The first answer where packets cannot be taken; the diverter ends."""

    reason: str
    remedy: str


class Stall(Message, frozen=True):
    """Follow `on_failure` from now on, until the gate's next heartbeat."""


class Change(Message, frozen=True):
    """Other terms for every connection from now on. Of runs `quic` never changes."""

    on_failure: OnFailure
    quic: Quic
    everything: bool


class Detach(Message, frozen=True):
    """Divert nothing more. Diverted connections live on."""


class Close(Message, frozen=True):
    """The end of the channel that comes now is in order: the network opens, whatever the policy says of failures."""


class NotDiverted(Message, frozen=True):
    """One attempt that the diverter saw and did not lead to the gate."""

    reason: str  # a Reason
    transport: Transport
    remote: Endpoint
    process: Process
    at_ns: int
    denied: bool


class DiverterFault(Message, frozen=True):
    """`count` of the same kind since the last ones were told."""

    what: str
    failed: OnFailure
    detail: str = ""  # of the first
    count: int = 1


class DiverterStatus(Message, frozen=True):
    """Several times a second. A diverter that is silent for a second hangs."""

    beat_ns: int  # CLOCK_MONOTONIC of the gate's last heartbeat; 0: none yet
    diverted: int
    untold: dict[str, int]  # attempts like those of `NotDiverted`, too many to be told, by reason


class AllTold(Message, frozen=True):
    """The answer to `Close`, after everything that there was to tell."""


FROM_DIVERTER = (Ready, DiverterRefused, NotDiverted, DiverterFault, DiverterStatus, AllTold)
TO_DIVERTER = (Stall, Change, Detach, Close)
