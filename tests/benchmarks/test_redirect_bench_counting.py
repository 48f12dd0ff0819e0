"""The counting origin tells who came by himself from who was relayed, over real connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import host
from benchmarks.figures import Metric
from benchmarks.host import CLIENT_ADDRESS, ORIGIN_ADDRESS, run
from benchmarks.redirect import callers, counting
from benchmarks.redirect.callers import loop
from benchmarks.redirect.counting import PORT, Counting
from benchmarks.redirect.figures import Arrivals, parse_connect

pytestmark = pytest.mark.root
RELAY_PORT = 8092


@pytest.fixture
def counted() -> Iterator[Counting]:
    """The origin in a network namespace of this test, with the addresses of the benchmark's both sides."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        run(["ip", "link", "set", "lo", "up"])
        for address in (CLIENT_ADDRESS, ORIGIN_ADDRESS):
            run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
        with counting.serving(ours) as running:
            yield running
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)
        os.close(ours)


@pytest.fixture
def relay(counted: Counting) -> Iterator[int]:
    """The port of the gate's bare relay to the counting origin."""
    argv = [sys.executable, "-m", "benchmarks.redirect.explicit", "bare", str(RELAY_PORT), ORIGIN_ADDRESS, str(PORT)]
    with subprocess.Popen(argv) as process:
        try:
            _await(RELAY_PORT)
            yield RELAY_PORT
        finally:
            process.kill()


def _await(port: int) -> None:
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        try:
            return socket.create_connection((CLIENT_ADDRESS, port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError


def test_who_calls_the_origin_himself_comes_by_himself(counted: Counting) -> None:
    told = loop(ORIGIN_ADDRESS, PORT, 50, "led")
    assert (told["made"], told["failed"]) == (50, 0)
    assert counted.arrivals("led") == Arrivals(seen=50, alone=50, twice=0)
    assert counted.arrivals("led") == Arrivals(seen=0, alone=0, twice=0)


def test_who_is_relayed_does_not_and_callers_are_told_apart(counted: Counting, relay: int) -> None:
    assert loop(CLIENT_ADDRESS, relay, 30, "led")["failed"] == 0
    assert loop(ORIGIN_ADDRESS, PORT, 10, "beside")["failed"] == 0
    assert counted.arrivals("led") == Arrivals(seen=30, alone=0, twice=0)
    assert counted.arrivals("beside") == Arrivals(seen=10, alone=10, twice=0)


def test_a_number_that_comes_twice_is_one_connection_and_counted_as_such(counted: Counting) -> None:
    for _ in range(2):
        loop(ORIGIN_ADDRESS, PORT, 3, "led")
    assert counted.arrivals("led") == Arrivals(seen=3, alone=6, twice=3)


def test_nobody_there_is_a_failure_of_each(counted: Counting) -> None:
    told = loop(ORIGIN_ADDRESS, PORT + 1, 2, "led")
    assert told["failed"] == 2


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(1024))

    def log_message(self, *_: object) -> None:
        pass


def test_the_times_of_connect_are_what_the_figures_are_read_from() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        argv = [sys.executable, "-I", "-S", callers.__file__, "connect", *map(str, server.server_address), "100"]
        figures = parse_connect(run(argv))
        server.shutdown()
        serving.join()
    assert 0 < figures[Metric.CONNECT_P50] <= figures[Metric.CONNECT_P99]
    assert figures[Metric.CONNECT_P50] < figures[Metric.ANSWER_P50]
    assert 0 < figures[Metric.UDP_CONNECT] < 1000


def test_who_is_set_apart_calls_the_same_origin_by_a_way_of_his_own():
    """From a thread, so that this process stays where it is."""

    def story():
        origin_fd = host.enter_client_namespace()
        apart_fd = host.apart(origin_fd)
        with counting.serving(origin_fd) as counted:
            called = {}
            for who, namespace_fd in (("here", None), ("apart", apart_fd)):
                with host.within(namespace_fd):
                    called[who] = run(["ip", "-o", "route", "get", ORIGIN_ADDRESS])
                    assert loop(ORIGIN_ADDRESS, PORT, 3, who)["failed"] == 0
            arrived = [counted.arrivals(who) for who in called]
        for fd in (origin_fd, apart_fd):
            os.close(fd)
        return called, arrived

    with ThreadPoolExecutor(1) as thread:
        called, arrived = thread.submit(story).result()
    assert ("dev bench-c" in called["here"], "dev apart-c" in called["apart"]) == (True, True)
    assert arrived == [Arrivals(seen=3, alone=3, twice=0)] * 2
