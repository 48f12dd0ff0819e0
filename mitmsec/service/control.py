"""What `mitmsec run` and the supervisor say to each other over STATE/run/control.sock.

    run ── OpenRun + network, policy, roots[, capture file][, keys] ──► supervisor
        ◄── RunOpened | Refused
        ── CommandEnded(status) ──►        the hook comes off, flows drain, events are committed
        ◄── RunClosed
    start, reload, off, stop ── StartService, ReloadService, SwitchService, StopService ──►
        ◄── ServiceStarted, ServiceReloaded, ServiceSwitched, RunClosed | Refused
    ca init, import, rotate ── CaChanged ──►
        ◄── CaAdopted | Refused
    quarantine release, audit account ── Review ──► ◄── ReviewRecorded | Refused
    audit erase, unmask, … ── ContentOrder ──► ◄── ContentAnswer (mitmsec.core.content_orders) | Refused
    audit console ── OpenConsole ──► ◄── ConsoleOpened + channel to the recorder | Refused

The supervisor takes orders from root only (SO_PEERCRED) and writes the caller's uid into the log. Whoever else may open
the socket is in the group that may read, and may ask for READING.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from mitmsec.core.content_orders import ANSWERS, FROM_READERS, EraseContent
from mitmsec.core.messages import Message
from mitmsec.core.model import LearnedBypass, OnFailure, Value

SERVICE = "(service)"  # in the place of a run's program, for people
ROWS_LIMIT = 40  # sessions in an answer: three texts of a kibibyte or less, and some forty bytes for each process


class BackendChoice(StrEnum):
    """What may be asked for; all but `auto` are kinds of backends."""

    AUTO = "auto"
    CONNECT_HOOK = "connect_hook"
    NFTABLES = "nftables"
    WINDIVERT = "windivert"


class OpenRun(Message, frozen=True):
    """fds: network namespace, policy (memfd), upstream roots (memfd, PEM), then the capture file if any, then
    with `keys` those of the policy's services (memfd).

    Of the command only the program is told: arguments hold passwords and tokens, which have no place in a log.
    """

    program: str
    arguments: int
    user: str
    policy_file: str
    policy_sha256: str
    workers: int
    capture: bool
    backend: BackendChoice = BackendChoice.AUTO
    keys: bool = False
    nameservers: tuple[str, ...] = ()  # of its /etc/resolv.conf


class RunOpened(Message, frozen=True):
    """The hook is in place and a gate listens. The command is put into `cgroup` before it starts."""

    session: str
    cgroup: str
    folder: str  # of this run; root's, everybody may read
    root_pem: str


class StartService(Message, frozen=True):
    """fds: network namespace, policy (memfd), upstream roots (memfd, PEM), then with `keys` those of the policy's
    services (memfd).

    The service lives until `StopService`; `bound` to this client, also only as long as that listens.
    """

    policy_file: str
    policy_sha256: str
    workers: int
    bound: bool
    backend: BackendChoice = BackendChoice.AUTO
    keys: bool = False


class ServiceStarted(Message, frozen=True):
    """The hook is in place and a gate listens."""

    session: str
    root_pem: str


class StopService(Message, frozen=True):
    """Answered with RunClosed once nothing of the service is left, or Refused where there is none."""


class ReloadService(Message, frozen=True):
    """fds: policy (memfd), upstream roots (memfd, PEM), then with `keys` those of the policy's services (memfd).

    Live flows keep what they were decided under.
    """

    policy_file: str
    policy_sha256: str
    keys: bool = False


class ServiceReloaded(Message, frozen=True):
    """Every connection from now on is decided under the new policy."""


class SwitchService(Message, frozen=True):
    """The kill switch: `off` or on again, for the service and every run."""

    off: bool


class ServiceSwitched(Message, frozen=True):
    """It holds. `cut` decrypted connections had to be closed; `sessions` are those that it holds for."""

    cut: int
    sessions: int


class CaChanged(Message, frozen=True):
    """The CA's files have changed, and what was done stands in the journal (mitmsec.service.ca_journal)."""


class CaAdopted(Message, frozen=True):
    """The signer signs with what the files hold, and what was done is on record."""


class Review(Message, frozen=True):
    """Somebody is about to see what lies under quarantine, opened with these people's keys; or changes an account."""

    item: str
    user: str
    people: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    operation: str = "quarantine_released"
    detail: str = ""


class ReviewRecorded(Message, frozen=True):
    """That is on disk."""


class OpenConsole(Message, frozen=True):
    """A console begins, or its recorder was replaced."""


class ConsoleOpened(Message, frozen=True):
    """fds: a console's channel to the recorder. Recorder and supervisor stay as long as the one who asked does."""


class Refused(Message, frozen=True):
    """Why there is no run; `status` is the exit status that says whose fault it is."""

    error: str
    remedy: str
    status: int


class CommandEnded(Message, frozen=True):
    """`status` as the shell would see it, None if the command never started.

    With `wait`, the run stays until its last child has ended.
    """

    status: int | None
    wait: bool


class RunClosed(Message, frozen=True):
    """The run is over. `committed`: the recorder has confirmed that all of it is on disk."""

    committed: bool
    connections: int
    requests: int
    findings: int
    faults: int
    cut: int  # connections that had to be cut
    survivors: int  # children of the command that live on, no longer diverted


class StatusQuestion(Message, frozen=True):
    pass


class NamesStatus(Value, frozen=True):
    """What programs ask these name servers over UDP is heard; what they ask `beyond` more is not."""

    servers: tuple[str, ...]
    beyond: int


class ServiceStatus(Value, frozen=True):
    """The service, where there is one."""

    session: str
    backend: str
    policy_file: str
    policy_sha256: str
    applications: tuple[str, ...]  # names, as many as fit
    on_failure: OnFailure
    started: str  # RFC 3339, UTC
    faults: int
    names: NamesStatus | None = None  # None: nobody hears DNS


class StatusAnswer(Message, frozen=True):
    """Who runs: (session, command, cgroup) and (role, pid, session); `left_out` rows did not fit into a packet."""

    supervisor: int  # its pid
    sessions: tuple[tuple[str, str, str], ...]
    processes: tuple[tuple[str, int, str], ...]
    left_out: int = 0
    flows: tuple[tuple[str, int, int], ...] = ()  # session, live, of which decrypted
    service: ServiceStatus | None = None
    off: bool = False
    backends: tuple[tuple[str, str], ...] = ()  # session, what diverts it
    learned: tuple[tuple[str, LearnedBypass], ...] = ()  # session, what its gate lets pass


class ModulesOf(Message, frozen=True):
    """Which modules has the process `pid`, the supervisor's own or a child's, loaded?"""

    pid: int


class Modules(Message, frozen=True):
    """Empty when there is no such process."""

    pid: int
    modules: tuple[str, ...]


READING: tuple[type[Message], ...] = (StatusQuestion, *FROM_READERS)
"""What the group that may read may ask."""
FROM_RUN: tuple[type[Message], ...] = (
    *READING,
    OpenRun,
    CommandEnded,
    ModulesOf,
    StartService,
    StopService,
    ReloadService,
    SwitchService,
    CaChanged,
    Review,
    EraseContent,
    OpenConsole,
)
FROM_SUPERVISOR: tuple[type[Message], ...] = (
    RunOpened,
    ServiceStarted,
    ServiceReloaded,
    ServiceSwitched,
    CaAdopted,
    ReviewRecorded,
    ConsoleOpened,
    Refused,
    RunClosed,
    StatusAnswer,
    Modules,
    *ANSWERS,
)


def status_answer(
    supervisor: int,
    sessions: Sequence[tuple[str, str, str]],
    processes: Sequence[tuple[str, int, str]],
    flows: Sequence[tuple[str, int, int]] = (),
    service: ServiceStatus | None = None,
    backends: Sequence[tuple[str, str]] = (),
    learned: Sequence[tuple[str, LearnedBypass]] = (),
    *,
    off: bool = False,
) -> StatusAnswer:
    """An answer that fits into a packet, however many run."""
    answer = StatusAnswer(
        supervisor=supervisor,
        sessions=tuple(sessions[:ROWS_LIMIT]),
        processes=tuple(processes[: 8 * ROWS_LIMIT]),
        flows=tuple(flows[:ROWS_LIMIT]),
        service=service,
        off=off,
        backends=tuple(backends[:ROWS_LIMIT]),
        learned=tuple(learned[: ROWS_LIMIT // 2]),
    )
    shown = len(answer.sessions) + len(answer.processes) + len(answer.learned)
    left_out = len(sessions) + len(processes) + len(learned) - shown
    return msgspec.structs.replace(answer, left_out=left_out)


def listen(path: Path, gid: int) -> socket.socket:
    """The supervisor's socket at `path`; a dead owner's is replaced. Call with the state's lock held."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with _short(path) as name:
        listener.bind(name)
    os.chown(path, 0, gid)
    path.chmod(0o660)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def connect(path: Path) -> socket.socket:
    """Raises OSError where no supervisor listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with _short(path) as name:
            sock.connect(name)
    except OSError:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel saw it at connect()."""
    pid, uid, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address (107 bytes), however deep the state directory lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
