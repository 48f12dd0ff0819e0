"""What a session needs of whatever diverts its program's connections, and what its gate is given to know them by.

    Backend (supervisor, root)                                       gate (its own user)
      ground ─────────────── descriptors by SCM_RIGHTS ─────────────► origins, heartbeat
      watched ◄── the supervisor's loop: descriptor readable → call
      owner(client, origin) ◄── Whose: whose is it?  ◄─────────────── an accepted connection
      missed, lost, diverted ──► the record

| kind         | how the gate learns an origin               | who says whose it is             | confidence |
|--------------|---------------------------------------------|----------------------------------|------------|
| connect_hook | map, by the cookie of the client's socket   | the origin itself: pid           | kernel     |
| nftables     | SO_ORIGINAL_DST of the accepted socket      | `owner`: sock_diag, then /proc   | table      |
| windivert    | told before the SYN is released             | the origin itself: pid           | kernel     |
| replay       | `Replay.find`, in the same process          | the origin itself: its process   | as recorded |

Each backend is opened by its own constructor, for what they need differs; from then on they are alike. Nothing here
is thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Value
from mitmsec_redirect.records import Missed, Reason


class BackendKind(StrEnum):
    """The redirect mechanisms, by the names that `--backend` and `status` use."""

    CONNECT_HOOK = "connect_hook"
    NFTABLES = "nftables"
    REPLAY = "replay"
    WINDIVERT = "windivert"


class BackendUnavailable(Exception):
    """The backend cannot be used here: `reason` says why, `remedy` what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy


class GateGround(Value, frozen=True):
    """What the gate is given: the descriptors stay the backend's, so they are duplicated by passing them on."""

    kind: BackendKind
    heartbeat_fd: int | None = None  # connect_hook: map; nftables: eventfd, for `pulse.Pulse`
    origins_fd: int | None = None  # connect_hook: map; windivert: channel; nftables: the accepted socket is enough
    local_ports: tuple[int, int] | None = None  # first and last: where its own connections have to come from

    @property
    def descriptors(self) -> tuple[int, ...]:
        """In the order in which they are handed over."""
        return tuple(fd for fd in (self.origins_fd, self.heartbeat_fd) if fd is not None)


class BackendFault(Value, frozen=True):
    """Something that went wrong with the backend itself. `what` is the word that stands in fault events."""

    what: str
    detail: str = ""
    count: int = 1
    failed: OnFailure | None = None  # which way the traffic went; None: as the policy says


class Watched(Value, frozen=True):
    """For the supervisor's loop: when `fd` is readable, call `readable`. It never waits."""

    fd: int
    readable: Callable[[], None]


class SocketOwner(Value, frozen=True):
    """Which process has a socket. With Confidence.UNKNOWN there is no pid, and `uid` is all that may be known."""

    source: str  # as in Process.source
    confidence: Confidence
    pid: int = 0  # 0: unknown
    uid: int | None = None  # of who made the socket
    comm: str = ""
    started_ticks: int = 0  # since boot: with the pid, which process that was


class Backend(Protocol):
    """One session's diversion, from its opening until `close`."""

    @property
    def kind(self) -> BackendKind: ...

    @property
    def ground(self) -> GateGround:
        """For each gate of this session: the same for all of them."""

    @property
    def watched(self) -> Sequence[Watched]:
        """Until `close`; remove them from the loop before that."""

    def set_port(self, port_v4: int, port_v6: int | None) -> None:
        """Other listeners from now on: a gate was started anew, and has one second for its first heartbeat."""

    def stall(self) -> None:
        """Follow `on_failure` from this moment; the gate's next heartbeat ends that."""

    @property
    def last_beat_ns(self) -> int:
        """CLOCK_MONOTONIC of the gate's last beat that was heard; 0: none yet."""

    def owner(self, client: Endpoint, origin: Endpoint) -> SocketOwner | None:
        """Whose the accepted connection from `client` is. None: the origin has said so already."""

    @property
    def missed_fd(self) -> int | None:
        """Readable when `missed` has something to tell; None: that has to be asked."""

    def missed(self) -> list[Missed]:
        """What was not diverted since the last call, oldest first."""

    def lost(self) -> Mapping[Reason, int]:
        """How many of each reason `missed` has not told, and will not if it is not called again."""

    def troubles(self) -> Sequence[BackendFault]:
        """What went wrong with the backend itself since the last call."""

    @property
    def diverted(self) -> int:
        """Connections sent to the gate so far."""

    def detach(self) -> None:
        """Divert nothing more, at once; diverted connections live on until `close`."""

    def close(self) -> None:
        """Leave nothing behind. Idempotent."""
