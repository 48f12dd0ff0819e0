"""QUIC led to the gate's relay: what the program sees is what it would have seen of its origin. Real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from redirect_sandbox import Agent, Sandbox, ip, stall

from mitmsec.core.model import Endpoint, OnFailure, Quic, Transport
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.origins import Origin, OriginTable, parse_origin
from mitmsec_redirect.records import Reason
from mitmsec_redirect.udp_hook import UdpHook

pytestmark = pytest.mark.root

DATAGRAM = "s = socket.socket(socket.{}, socket.SOCK_DGRAM); s.settimeout(5);"
CONNECTED = DATAGRAM + "s.connect(({!r}, 443)); s.send(b'asked');"
BY_NAME = DATAGRAM + "s.sendto(b'asked', ({!r}, 443));"
HEARD = "heard, whose = s.recvfrom(99); answer = [heard.decode(), *whose[:2]]"
TO = {
    "IPv4": ("AF_INET", "203.0.113.9", "203.0.113.9"),
    "IPv6": ("AF_INET6", "2001:db8::9", "2001:db8::9"),
    "v4-mapped": ("AF_INET6", "::ffff:203.0.113.9", "203.0.113.9"),
}


class Stage:
    """The relay's sockets, at the listeners' ports, and a hook that leads there."""

    def __init__(self, box: Sandbox, on_failure: OnFailure = OnFailure.OPEN) -> None:
        self.box = box
        self.relays = {}
        for family, address, port in (
            (socket.AF_INET, "127.0.0.1", box.port_v4),
            (socket.AF_INET6, "::1", box.port_v6),
        ):
            relay = self.relays[family] = socket.socket(family, socket.SOCK_DGRAM)
            relay.settimeout(5)
            relay.bind((address, port))
        self.hook: ConnectHook = box.hook(on_failure, Quic.BYPASS, has_quic_relay=True)

    def hear(self, agent: Agent, code: str, *, v6: bool = False) -> tuple[bytes, Origin | None, dict[str, object]]:
        """What came at the relay, where it was meant for, and what the program saw of the answer."""
        relay = self.relays[socket.AF_INET6 if v6 else socket.AF_INET]
        agent.start(code)
        asked, whose = relay.recvfrom(99)
        found = self.box.cookies.find(Endpoint.of(*whose[:2]), Endpoint.of(*relay.getsockname()[:2]), Transport.UDP)
        told = None if found is None else OriginTable(self.hook.origins_fd).find(found.cookie)
        origin = None if told is None else parse_origin(told)
        relay.sendto(b"answered", whose)
        return asked, origin, agent.finish()

    def nothing_came(self) -> bool:
        for relay in self.relays.values():
            relay.setblocking(False)
            try:
                relay.recv(99)
            except BlockingIOError:
                relay.settimeout(5)
                continue
            return False
        return True

    def close(self) -> None:
        for relay in self.relays.values():
            relay.close()


@pytest.fixture
def stage(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(sandbox, getattr(request, "param", OnFailure.OPEN))
    yield made
    made.close()


closed = pytest.mark.parametrize("stage", [OnFailure.CLOSED], indirect=True)


@pytest.mark.parametrize("how", [CONNECTED, BY_NAME])
@pytest.mark.parametrize("to", TO)
def test_it_comes_to_the_relay_and_the_answer_seems_to_come_from_the_origin(stage: Stage, how: str, to: str) -> None:
    family, address, plain = TO[to]
    agent = stage.box.agent()
    asked, origin, told = stage.hear(agent, how.format(family, address) + HEARD, v6=to == "IPv6")
    assert asked == b"asked"
    assert origin is not None
    assert (origin.remote, origin.pid) == (Endpoint(address=plain, port=443), agent.pid)
    assert told == {"answer": ["answered", address, 443]}


def test_the_socket_tells_the_true_names(stage: Stage) -> None:
    asked = CONNECTED.format("AF_INET", "203.0.113.9") + "answer = [*s.getpeername(), s.getsockname()[0]]; s.recv(99)"
    _, _, told = stage.hear(stage.box.agent(), asked)
    assert told == {"answer": ["203.0.113.9", 443, "10.77.0.1"]}


def test_who_names_its_destination_each_time_is_led_each_time(stage: Stage) -> None:
    agent = stage.box.agent()
    stage.hear(agent, BY_NAME.format("AF_INET", "203.0.113.9") + HEARD)
    asked, _, told = stage.hear(agent, "s.sendto(b'more', ('203.0.113.9', 443));" + HEARD)
    assert (asked, told) == (b"more", {"answer": ["answered", "203.0.113.9", 443]})


def test_a_socket_is_led_for_one_destination_and_refused_another(stage: Stage) -> None:
    agent = stage.box.agent()
    stage.hear(agent, BY_NAME.format("AF_INET", "203.0.113.9") + HEARD)
    assert agent("s.sendto(b'x', ('203.0.113.8', 443))") == {"error": "EPERM"}
    assert stage.nothing_came()
    (missed,) = stage.hook.missed()
    assert (missed.reason, missed.denied) == (Reason.QUIC_REFUSED, True)


def test_who_is_connected_elsewhere_is_refused_since_it_would_hear_no_answer(stage: Stage) -> None:
    code = DATAGRAM.format("AF_INET") + "s.connect(('10.77.0.1', 9)); s.sendto(b'x', ('203.0.113.9', 443))"
    assert stage.box.agent()(code) == {"error": "EPERM"}


def test_a_socket_that_is_connected_anew_is_led_for_its_new_destination(stage: Stage) -> None:
    agent = stage.box.agent()
    stage.hear(agent, CONNECTED.format("AF_INET", "203.0.113.9") + HEARD)
    _, origin, told = stage.hear(agent, "s.connect(('203.0.113.8', 443)); s.send(b'asked');" + HEARD)
    assert origin is not None
    assert origin.remote.address == "203.0.113.8"
    assert told == {"answer": ["answered", "203.0.113.8", 443]}


def test_other_udp_and_what_comes_from_elsewhere_is_untouched(stage: Stage) -> None:
    code = (
        "a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)); a.bind(('127.0.0.1', 0));"
        "b.sendto(b'hello', a.getsockname()); data, whose = a.recvfrom(9);"
        "a.connect(whose); b.connect(a.getsockname());"
        "answer = [data.decode(), whose == b.getsockname(), b.getpeername() == a.getsockname()]"
    )
    assert stage.box.agent()(code) == {"answer": ["hello", True, True]}
    assert stage.nothing_came()


def test_nobody_but_the_relay_is_taken_for_the_origin(stage: Stage) -> None:
    """A program that hears the relay though it was not led there sees who it is."""
    agent = stage.box.agent()
    agent("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.bind(('127.0.0.1', 0))")
    port = agent("answer = s.getsockname()[1]")["answer"]
    relay = stage.relays[socket.AF_INET]
    relay.sendto(b"answered", ("127.0.0.1", port))
    assert agent(HEARD) == {"answer": ["answered", "127.0.0.1", relay.getsockname()[1]]}


def test_without_a_route_it_fails_as_ever(stage: Stage) -> None:
    ip("route add unreachable 198.51.100.0/24")
    stage.hook.refresh_routes()
    agent = stage.box.agent()
    for how in (CONNECTED, BY_NAME):
        assert agent(how.format("AF_INET", "198.51.100.1")) == {"error": "EHOSTUNREACH"}


def test_a_stalled_gate_lets_it_out(stage: Stage) -> None:
    agent = stage.box.agent()
    stall(stage.hook)
    assert agent(BY_NAME.format("AF_INET", "203.0.113.9")) == {"answer": None}
    assert stage.nothing_came()
    (missed,) = stage.hook.missed()
    assert (missed.reason, missed.denied) == (Reason.GATE_STALLED, False)


@closed
def test_a_stalled_gate_refuses_it_under_closed(stage: Stage) -> None:
    agent = stage.box.agent()
    stage.hear(agent, BY_NAME.format("AF_INET", "203.0.113.9") + HEARD)
    stall(stage.hook)
    assert agent("s.sendto(b'more', ('203.0.113.9', 443))") == {"error": "EPERM"}
    assert stage.nothing_came()


@pytest.mark.parametrize("first", ["udp", "led"])
def test_what_is_led_is_not_told_as_a_udp_flow_too(sandbox: Sandbox, first: str) -> None:
    """Whichever programs the kernel runs first: a reload attaches those that lead after the others."""
    stage = Stage(sandbox)
    if first == "udp":
        stage.hook.change(on_failure=OnFailure.OPEN, quic=Quic.REFUSE)
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS, beside=stage.hook) as udp:
        if first == "udp":
            stage.hook.change(on_failure=OnFailure.OPEN, quic=Quic.BYPASS)
        agent = sandbox.agent()
        for how in (CONNECTED, BY_NAME):
            _, _, told = stage.hear(agent, how.format("AF_INET", "203.0.113.9") + HEARD)
            assert told == {"answer": ["answered", "203.0.113.9", 443]}
        agent("s.close()")
        assert udp.drain(99).told == []
    stage.close()
