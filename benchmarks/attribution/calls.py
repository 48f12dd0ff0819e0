"""The few socket calls that all patterns are made of. Standard library only; blocking, each with a deadline."""

from __future__ import annotations

import contextlib
import socket

from benchmarks.attribution.job import ORIGIN_PORT
from benchmarks.attribution.plan import Family, Flow

DEADLINE_S = 10.0


def made(flow: Flow, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the flow's family, not connected."""
    sock = socket.socket(socket.AF_INET if flow.family is Family.V4 else socket.AF_INET6, kind)
    sock.settimeout(DEADLINE_S)
    return sock


def connected(flow: Flow, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket connected to the flow's own address."""
    sock = made(flow, kind)
    sock.connect((flow.far_end, ORIGIN_PORT))
    return sock


def first_words(number: int) -> bytes:
    """What a flow says first. `=` begins no request of HTTP and no hello of TLS."""
    return b"=%d\n" % number


def converse(sock: socket.socket, number: int) -> bytes:
    """Say the flow's number and hear what comes back, to the end or one datagram; closes the socket."""
    heard = b""
    with sock, contextlib.suppress(OSError):  # cut off: the far end's book tells
        sock.sendall(first_words(number))
        if sock.type == socket.SOCK_DGRAM:
            return sock.recv(64)
        while some := sock.recv(64):
            heard += some
    return heard
