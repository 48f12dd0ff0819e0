"""What gate and workers stand on: the supervisor, and their session."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from mitmsec.audit.event import Seen
from mitmsec.core.messages import Role, Whose
from mitmsec.core.policy import Policy
from mitmsec.service.children import ChildProcess
from mitmsec.service.inward import InwardGround
from mitmsec.service.name_relays import NameRelays
from mitmsec.service.scopes import Scope
from mitmsec.service.state import State
from mitmsec_redirect.backend import Backend


class Shared(Protocol):
    """What gate and workers need of the supervisor."""

    state: State
    log: Callable[[str], None]
    off: bool  # the kill switch has been thrown
    own_pem: str  # certificates of the CAs that nobody signs with but we: of no enterprise's root above ours

    def record(self, seen: Seen) -> None: ...
    def begun_worker(self) -> ChildProcess: ...
    def recorder_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...
    def signer_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...


class Ground(Protocol):
    """What they stand on: their session, with the policy that is in force when a child starts."""

    name: str
    policy: Policy
    policy_fd: int
    roots_fd: int
    network: int
    listeners: list[socket.socket]
    quic_relays: list[socket.socket]
    capture_fd: int | None
    keys_fd: int | None
    hook: Backend | None
    scope: Scope | None

    @property
    def inward(self) -> InwardGround | None: ...
    @property
    def names_fd(self) -> int | None: ...
    @property
    def relays(self) -> NameRelays | None: ...
    @property
    def shared(self) -> Shared: ...
    @property
    def worker_count(self) -> int: ...
    def fault(self, what: str, detail: str = "") -> None: ...
    def asked_whose(self, gate: ChildProcess, asked: Whose) -> None: ...


class Jails(Protocol):
    """Of the supervisor, as far as a child without a folder needs it."""

    state: State
    log: Callable[[str], None]
