"""Callers from outside: each inbound flow comes from an address of its own. They write the sightings of their flows."""

from __future__ import annotations

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.attribution import calls, job
from benchmarks.attribution.origin import Sightings
from benchmarks.attribution.plan import Course, Family, Flow

_SERVERS_DEADLINE_S = 30.0
_TOGETHER = 4


def call(flow: Flow, work: job.Job, book: Sightings) -> None:
    """One flow from its own address, and a note of what came back. Waits for a server that is not there yet."""
    kind = socket.SOCK_DGRAM if flow.course is Course.INBOUND_UDP else socket.SOCK_STREAM
    server = work.server_v4 if flow.family is Family.V4 else work.server_v6
    until_s = time.monotonic() + _SERVERS_DEADLINE_S
    while time.monotonic() < until_s:
        sock = calls.made(flow, kind)
        sock.settimeout(1.0 if kind == socket.SOCK_DGRAM else calls.DEADLINE_S)
        try:
            sock.bind((flow.far_end, 0))
            sock.connect((server, job.SERVER_PORTS[flow.pattern]))
        except ConnectionRefusedError:
            sock.close()
            time.sleep(0.05)
            continue
        if heard := calls.converse(sock, flow.number):
            return book.note(flow.far_end, (server, job.SERVER_PORTS[flow.pattern]), heard)
        if kind == socket.SOCK_STREAM:
            return  # accepted and cut: the flow is lost, and another one with its number would hide that


def main(path: Path) -> None:
    """All inbound flows of the job."""
    work = job.read(path)
    book = Sightings(work.sightings)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        calling = [pool.submit(call, flow, work, book) for unit in work.inbound() for flow in unit]
    for each in calling:
        each.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
