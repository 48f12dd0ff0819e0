"""Programs of the run that are called from outside. Whichever process accepts a flow signs for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from benchmarks.attribution.calls import DEADLINE_S
from benchmarks.attribution.job import SERVER_PORTS, Job
from benchmarks.attribution.plan import Pattern, number_of
from benchmarks.attribution.whoami import Book

IDLE_LIMIT_S = 30.0  # after which the callers have given up
WORKERS, FLOWS_PER_WORKER = 4, 25


def run(pattern: Pattern, work: Job, book: Book) -> None:
    """Serve all flows of the pattern, then return."""
    expected = sum(len(unit) for unit in work.inbound(pattern))
    if pattern is Pattern.UDP_SERVER:
        return _answer_datagrams(expected, book)
    listener = socket.create_server(
        ("::", SERVER_PORTS[pattern]), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
    )
    listener.settimeout(IDLE_LIMIT_S)
    with listener, suppress(TimeoutError):
        match pattern:
            case Pattern.PREFORKED:
                _prefork(listener, expected, book)
            case Pattern.INETD:
                _accept(listener, expected, book, pattern, _serve_in_child)
            case _:
                _accept(listener, expected, book, pattern, _serve)


def _accept(
    listener: socket.socket, count: int, book: Book, pattern: Pattern, serve: Callable[[socket.socket], None]
) -> None:
    for _ in range(count):
        client, peer = listener.accept()
        client.settimeout(DEADLINE_S)
        if (number := number_of(peer[0])) is not None:
            book.sign(number, pattern)
        serve(client)


def _serve(client: socket.socket) -> None:
    with client, suppress(OSError):
        client.sendall(client.recv(64))


def _serve_in_child(client: socket.socket) -> None:
    if os.fork() == 0:
        _serve(client)
        os._exit(0)
    client.close()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prefork(listener: socket.socket, expected: int, book: Book) -> None:
    """Workers that accept a few and end, each replaced by a new one, until all flows are served."""
    listener.settimeout(None)
    told, tell = os.pipe()
    signal.signal(signal.SIGALRM, _too_late)
    workers = {_worker(listener, tell, book) for _ in range(WORKERS)}
    served = 0
    while served < expected:
        signal.setitimer(signal.ITIMER_REAL, IDLE_LIMIT_S)
        try:
            words = os.read(told, 4096)
        except TimeoutError:
            break
        served += words.count(b"a")
        for _ in range(words.count(b"e")):
            workers.discard(os.wait()[0])
            workers.add(_worker(listener, tell, book))
    signal.setitimer(signal.ITIMER_REAL, 0)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _too_late(*_: object) -> None:
    raise TimeoutError


def _worker(listener: socket.socket, tell: int, book: Book) -> int:
    if pid := os.fork():
        return pid
    signal.setitimer(signal.ITIMER_REAL, 0)

    def serve(client: socket.socket) -> None:
        _serve(client)
        os.write(tell, b"a")  # last: on the last one's word the workers are ended

    _accept(listener, FLOWS_PER_WORKER, book, Pattern.PREFORKED, serve)
    os.write(tell, b"e")
    os._exit(0)


def _answer_datagrams(expected: int, book: Book) -> None:
    """Until each flow has been answered once; one that calls again (its answer was lost) is answered again."""
    answered: set[int] = set()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock, suppress(TimeoutError):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", SERVER_PORTS[Pattern.UDP_SERVER]))
        sock.settimeout(IDLE_LIMIT_S)
        while len(answered) < expected:
            data, peer = sock.recvfrom(64)
            number = number_of(peer[0])
            if number is not None and number not in answered:
                answered.add(number)
                book.sign(number, Pattern.UDP_SERVER)
            sock.sendto(data, peer)
