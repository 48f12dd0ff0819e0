"""Another program, as far as the kernel knows, to which sockets are passed: SCM_RIGHTS over a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.attribution import calls, job
from benchmarks.attribution.job import ORIGIN_PORT, Job
from benchmarks.attribution.plan import Flow, Pattern
from benchmarks.attribution.whoami import Book

_MESSAGE_LIMIT_BYTES = 32


def hand_over(sock: socket.socket, flow: Flow, work: Job) -> None:
    """Give the socket away; whether it is connected says the flow's pattern."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(str(work.door))
        socket.send_fds(door, [b"%d" % flow.number], [sock.fileno()])
    sock.close()


def serve(work: Job, book: Book) -> None:
    """Take every socket that the job's plan has for us: connect it where it is not, then converse on it."""
    expected = {flow.number: flow for flow in _flows(work)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(work.door))
        listener.listen(512)
        listener.settimeout(calls.DEADLINE_S * 3)
        with contextlib.suppress(TimeoutError):  # the others have ended without us
            while expected:
                visitor, _ = listener.accept()
                with visitor:
                    message, fds, _, _ = socket.recv_fds(visitor, _MESSAGE_LIMIT_BYTES, 1)
                flow = expected.pop(int(message))
                _use(socket.socket(fileno=fds[0]), flow, book)


def _flows(work: Job) -> Iterator[Flow]:
    return (flow for unit in work.outbound() for flow in unit if flow.pattern in (Pattern.LENT, Pattern.PASSED))


def _use(sock: socket.socket, flow: Flow, book: Book) -> None:
    sock.settimeout(calls.DEADLINE_S)
    if flow.pattern is Pattern.LENT:
        book.sign(flow.number, flow.pattern)
        sock.connect((flow.far_end, ORIGIN_PORT))
    calls.converse(sock, flow.number)


def main(path: Path) -> None:
    """The partner's program."""
    work = job.read(path)
    serve(work, Book(work.labels))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
