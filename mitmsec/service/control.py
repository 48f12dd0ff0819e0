"""What `mitmsec run` and the supervisor say to each other over STATE/run/control.sock.

    run ── OpenRun + network, policy, roots[, capture file] ──► supervisor
        ◄── RunOpened | Refused
        ── CommandEnded(status) ──►        the hook comes off, flows drain, events are committed
        ◄── RunClosed

The supervisor takes orders from root only (SO_PEERCRED) and writes the caller's uid into the log.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mitmsec.core.messages import Message

ROWS_LIMIT = 40  # sessions in an answer: three texts of a kibibyte or less, and some forty bytes for each process


class OpenRun(Message, frozen=True):
    """fds: network namespace, policy (memfd, JSON), upstream roots (memfd, PEM), then the capture file if any.

    Of the command only the program is told: arguments hold passwords and tokens, which have no place in a log.
    """

    program: str
    arguments: int
    user: str
    policy_file: str
    policy_sha256: str
    workers: int
    capture: bool


class RunOpened(Message, frozen=True):
    """The hook is in place and a gate listens. The command is put into `cgroup` before it starts."""

    session: str
    cgroup: str
    folder: str  # of this run; root's, everybody may read
    root_pem: str


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


class StatusAnswer(Message, frozen=True):
    """Who runs: (session, command, cgroup) and (role, pid, session); `left_out` rows did not fit into a packet."""

    supervisor: int  # its pid
    sessions: tuple[tuple[str, str, str], ...]
    processes: tuple[tuple[str, int, str], ...]
    left_out: int = 0


class ModulesOf(Message, frozen=True):
    """Which modules has the process `pid`, the supervisor's own or a child's, loaded?"""

    pid: int


class Modules(Message, frozen=True):
    """Empty when there is no such process."""

    pid: int
    modules: tuple[str, ...]


FROM_RUN: tuple[type[Message], ...] = (OpenRun, CommandEnded, StatusQuestion, ModulesOf)
FROM_SUPERVISOR: tuple[type[Message], ...] = (RunOpened, Refused, RunClosed, StatusAnswer, Modules)


def status_answer(
    supervisor: int, sessions: Sequence[tuple[str, str, str]], processes: Sequence[tuple[str, int, str]]
) -> StatusAnswer:
    """An answer that fits into a packet, however many run."""
    answer = StatusAnswer(supervisor, tuple(sessions[:ROWS_LIMIT]), tuple(processes[: 8 * ROWS_LIMIT]))
    left_out = len(sessions) + len(processes) - len(answer.sessions) - len(answer.processes)
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
