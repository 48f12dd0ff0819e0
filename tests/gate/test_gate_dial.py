"""Connecting: errors by their names, staggered attempts, the first wins."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import Any

import pytest
from gate_house import on_loop

from mitmsec.core.model import Endpoint
from mitmsec.gate import dial as module
from mitmsec.gate.dial import Dial, failure_of
from mitmsec.gate.signals import DialFailure


class Attempt:
    """A dial, and what came of it."""

    def __init__(
        self,
        *endpoints: Endpoint,
        deadline_s: float = 20.0,
        bound: str | None = None,
        local_ports: range | None = None,
    ) -> None:
        self.result: asyncio.Queue[Any] = asyncio.Queue()
        self.dial = Dial(
            asyncio.get_running_loop(),
            lambda sock, endpoint: self.result.put_nowait((sock, endpoint)),
            self.result.put_nowait,
            deadline_s=deadline_s,
            bound=bound,
            local_ports=local_ports,
        )
        self.dial.add(endpoints)

    async def done(self) -> Any:
        return await asyncio.wait_for(self.result.get(), 20)


def listening(backlog: int = 5) -> tuple[socket.socket, Endpoint]:
    sock = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    return sock, Endpoint.of(*sock.getsockname())


def refusing() -> Endpoint:
    """Bound, so that nobody else takes the port, and closed at once: nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Endpoint.of(*sock.getsockname())


class Silent:
    """An endpoint that does not answer: its queue of connections is full, so that SYNs are dropped."""

    def __enter__(self) -> Endpoint:
        self._listener, endpoint = listening(backlog=0)
        self._clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((endpoint.address, endpoint.port))
            self._clients.append(client)
        return endpoint

    def __exit__(self, *error: object) -> None:
        for sock in (*self._clients, self._listener):
            sock.close()


@on_loop
async def test_a_connection_is_made_and_is_not_delayed_by_nagle() -> None:
    listener, endpoint = listening()
    with listener:
        sock, at = await Attempt(endpoint).done()
        with sock:
            assert at == endpoint
            assert sock.getpeername()[1] == endpoint.port
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getblocking()


@on_loop
async def test_a_refusal_is_a_refusal() -> None:
    assert await Attempt(refusing()).done() is DialFailure.REFUSED


@on_loop
async def test_an_address_without_a_way_is_unreachable() -> None:
    assert await Attempt(Endpoint(address="255.255.255.255", port=1)).done() is DialFailure.UNREACHABLE


@on_loop
async def test_silence_ends_at_the_deadline() -> None:
    with Silent() as silent:
        attempt = Attempt(silent, deadline_s=0.05)
        assert await attempt.done() is DialFailure.TIMEOUT


@on_loop
async def test_a_refusal_starts_the_next_attempt_at_once_and_the_last_ones_name_is_the_firsts() -> None:
    listener, endpoint = listening()
    with listener:
        sock, at = await Attempt(refusing(), endpoint).done()
        sock.close()
        assert at == endpoint
    both = Attempt(refusing(), Endpoint(address="255.255.255.255", port=1))
    assert await both.done() is DialFailure.REFUSED


@pytest.mark.parametrize("later", [False, True])
def test_a_slow_address_is_overtaken_by_the_next(later: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAGGER_S", 0.01)

    async def scenario() -> None:
        listener, endpoint = listening()
        with Silent() as silent, listener:
            attempt = Attempt(silent) if later else Attempt(silent, endpoint)
            if later:
                await asyncio.sleep(0)
                attempt.dial.add((endpoint,))
            sock, at = await attempt.done()
            sock.close()
            assert at == endpoint
            assert attempt.result.empty()

    asyncio.run(scenario())


@on_loop
async def test_a_dial_that_failed_can_be_given_further_addresses() -> None:
    listener, endpoint = listening()
    with listener:
        attempt = Attempt(refusing())
        assert await attempt.done() is DialFailure.REFUSED
        attempt.dial.add((endpoint,))
        sock, _ = await attempt.done()
        sock.close()


@on_loop
async def test_a_cancelled_dial_says_nothing() -> None:
    with Silent() as silent:
        attempt = Attempt(silent, deadline_s=0.01)
        await asyncio.sleep(0)
        attempt.dial.cancel()
        attempt.dial.cancel()
        listener, endpoint = listening()
        with listener:
            other = Attempt(endpoint)
            (await other.done())[0].close()
        assert attempt.result.empty()


@on_loop
async def test_an_address_that_the_program_bound_is_bound_again_where_the_family_fits() -> None:
    listener, endpoint = listening()
    with listener:
        sock, _ = await Attempt(endpoint, bound="127.0.0.7").done()
        with sock:
            assert sock.getsockname()[0] == "127.0.0.7"
        sock, _ = await Attempt(endpoint, bound="::1").done()
        with sock:
            assert sock.getsockname()[0] == "127.0.0.1"
    assert await Attempt(endpoint, bound="192.0.2.77").done() is DialFailure.UNREACHABLE


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errno.ECONNRESET, DialFailure.RESET),
        (errno.ETIMEDOUT, DialFailure.TIMEOUT),
        (errno.EMFILE, DialFailure.FAULT),
        (errno.ENETUNREACH, DialFailure.UNREACHABLE),
        (0, DialFailure.UNREACHABLE),
    ],
)
def test_errors_have_names(error: int, failure: DialFailure) -> None:
    assert failure_of(error) is failure


@on_loop
async def test_where_the_way_is_known_nothing_else_is_tried() -> None:
    sock, endpoint = listening()
    begun = socket.socket()
    begun.setblocking(False)

    def begin() -> socket.socket:
        begun.connect_ex((endpoint.address, endpoint.port))
        return begun

    result: asyncio.Queue[Any] = asyncio.Queue()
    dial = Dial(
        asyncio.get_running_loop(),
        lambda sock, endpoint: result.put_nowait(sock),
        result.put_nowait,
        deadline_s=20.0,
        begin=begin,
    )
    dial.add((endpoint,))
    assert await asyncio.wait_for(result.get(), 20) is begun
    begun.close()
    sock.close()


@on_loop
async def test_connections_come_from_the_ports_that_they_may_come_from() -> None:
    one, other = listening(), listening()
    free = range(61000, 61003)
    with one[0], other[0], contextlib.ExitStack() as open_ones:
        for endpoint in (one[1], other[1]):
            ports = set()
            for _ in free:
                sock, _ = await Attempt(endpoint, local_ports=free).done()
                open_ones.enter_context(sock)
                ports.add(sock.getsockname()[1])
            assert ports == set(free), "a port serves several origins, and each origin once"
        assert await Attempt(one[1], local_ports=free).done() is DialFailure.UNREACHABLE


@on_loop
async def test_a_bound_connection_keeps_its_address_and_comes_from_such_a_port() -> None:
    listener, endpoint = listening()
    with listener:
        sock, _ = await Attempt(endpoint, bound="127.0.0.7", local_ports=range(61010, 61020)).done()
        with sock:
            assert sock.getsockname()[0] == "127.0.0.7"
            assert sock.getsockname()[1] in range(61010, 61020)
