"""Stands for the gate: told on stdin of each flow that may come, it relays it to where it was meant to go.

argv: PORT FIRST LAST [HOST ORIGIN_PORT]. Its own connections come from local ports FIRST to LAST. With HOST it relays
everything there and needs to be told nothing. Lines on stdin: client, its port, gate, origin, its port.
A flow that it was not told of is reset, and said on stdout.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import sys
import threading

PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
port, first, last = map(int, sys.argv[1:4])
fixed = (sys.argv[4], int(sys.argv[5])) if len(sys.argv) > 4 else None
expected: dict[tuple[str, ...], tuple[str, int]] = {}
ports = itertools.cycle(range(first, last + 1))
told, told_lock, unread = sys.stdin.fileno(), threading.Lock(), b""


def hear() -> None:
    """Whatever was said before this moment."""
    global unread
    while select.select([told], [], [], 0)[0] and (data := os.read(told, 1 << 16)):
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            client, client_port, gate, origin, origin_port = line.decode().split()
            expected[client, client_port, gate] = (origin, int(origin_port))


def origin_of(accepted: socket.socket) -> tuple[str, int] | None:
    if fixed:
        return fixed
    (client, client_port), gate = accepted.getpeername()[:2], accepted.getsockname()[0]
    key = (client.removeprefix("::ffff:"), str(client_port), gate.removeprefix("::ffff:"))
    with told_lock:
        hear()
        return expected.pop(key, None)


def dialled(host: str, origin_port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(50):
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", next(ports)))
            sock.connect((host, origin_port))
        except OSError:
            sock.close()
            continue
        return sock
    raise OSError("nowhere to go")


def pump(source: socket.socket, sink: socket.socket) -> None:
    read, write = os.pipe()
    try:
        with contextlib.suppress(OSError):
            import fcntl

            fcntl.fcntl(write, F_SETPIPE_SZ, PIPE_BYTES)
            while size := os.splice(source.fileno(), write, PIPE_BYTES):
                while size:
                    size -= os.splice(read, sink.fileno(), size)
    finally:
        os.close(read)
        os.close(write)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def serve(accepted: socket.socket) -> None:
    with accepted:
        where = origin_of(accepted)
        if where is None:
            print("stranger", *accepted.getpeername()[:2], flush=True)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        try:
            origin = dialled(*where)
        except OSError:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        with origin:
            back = threading.Thread(target=pump, args=(origin, accepted))
            back.start()
            pump(accepted, origin)
            back.join()


listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
