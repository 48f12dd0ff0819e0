"""Measured clients, run by path in a variant's shell: `connect` times connect(), `loop` makes many in a row.

Standard library only, and nothing of ours: it is also executed under other names, and without our packages.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

TTL = 77
"""Of packets that a caller of the loop sends itself; what a relay sends has the machine's own (64)."""
_UDP_BATCH, _UDP_BATCHES = 2000, 7
_DEADLINE_S = 10.0


def connect(address: str, port: int, count: int) -> dict[str, float]:
    """Microseconds: of `connect()`, of a whole exchange, and of `connect()` on a UDP socket, which sends nothing."""
    calls_us, answers_us = [], []
    for _ in range(count):
        with socket.socket() as sock:
            sock.settimeout(_DEADLINE_S)
            before = time.perf_counter_ns()
            sock.connect((address, port))
            calls_us.append((time.perf_counter_ns() - before) / 1000)
            sock.sendall(b"GET /1k HTTP/1.0\r\n\r\n")
            sock.recv(64)
            answers_us.append((time.perf_counter_ns() - before) / 1000)
            while sock.recv(65536):
                pass
    return {
        "connect_p50_us": statistics.median(calls_us),
        "connect_p99_us": statistics.quantiles(calls_us, n=100)[98],
        "answer_p50_us": statistics.median(answers_us),
        "udp_connect_us": _udp_us(address),
    }


def _udp_us(address: str) -> float:
    """Microseconds a call in the fastest of some batches: what it costs, not who else was on the core."""
    batches_us = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(_UDP_BATCHES):
            before = time.perf_counter_ns()
            for _ in range(_UDP_BATCH):
                sock.connect((address, 9))
            batches_us.append((time.perf_counter_ns() - before) / 1000 / _UDP_BATCH)
    return min(batches_us)


def loop(address: str, port: int, count: int, who: str) -> dict[str, float]:
    """So many connections, one after the other; each says who and which it is, and is answered."""
    failed = 0
    started_s = time.monotonic()
    for number in range(count):
        try:
            with socket.socket() as sock:
                sock.settimeout(_DEADLINE_S)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
                sock.connect((address, port))
                sock.sendall(f"{who} {number}\n".encode())
                failed += sock.recv(8) != b"ok\n"
        except OSError:
            failed += 1
    return {"made": count, "failed": failed, "seconds": time.monotonic() - started_s}


if __name__ == "__main__":
    _act, _address, _port, _count, *_who = sys.argv[1:]
    _told = (connect if _act == "connect" else loop)(_address, int(_port), int(_count), *_who)
    print(json.dumps(_told))
