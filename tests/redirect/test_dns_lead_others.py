"""Leading DNS, as those meet it who are not to be led: other programs, other namespaces, other ports of ours."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from lead_stage import MAPPED, SERVE, V4, V6, Stage, is_led, sockets_of
from redirect_sandbox import Sandbox

from mitmsec_redirect import netns
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root
SENDTO = "s.sendto(b'q', ({!r}, 53)); d, f = s.recvfrom(999); answer = [d.decode(), *f[:2], s.getsockname()[1]]"
CONNECT = "s.connect(({!r}, 53)); s.send(b'q'); answer = [s.recv(999).decode(), s.getsockname()[1]]"
ECHO = "s = socket.socket({family}, 2); s.bind(({address!r}, {port})); t = socket.socket({family}, 2); t.settimeout(20)"
ASK = "t.sendto(b'q', ({address!r}, {port})); s.sendto(b'a', s.recvfrom(9)[1]); answer = t.recvfrom(9)[1][:2]"


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with contextlib.ExitStack() as held:
        made = Stage(sandbox, held)
        made.lead.meet(V4)
        made.lead.meet(V6)
        yield made


def port_of(stage: Stage, family: int) -> int:
    """The port of the first relay of this family, which has a server."""
    port: int = next(one for one in stage.relays if one.family == family).getsockname()[1]
    return port


def test_in_another_network_namespace_the_relays_ports_are_anybodys(stage: Stage) -> None:
    there = netns.fresh()
    try:
        agent = netns.inside(there, stage.agent)
    finally:
        os.close(there)
    assert "error" not in agent("import subprocess; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)")
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        where = {"family": int(family), "address": address, "port": port_of(stage, family)}
        assert stage.asks(agent, f"{ECHO}; {ASK}".format(**where)) == [address, where["port"]]


@pytest.mark.parametrize(("mine", "family", "address"), [(2, 10, "::1"), (10, 2, "127.0.0.1")])
def test_a_port_that_a_relay_has_of_one_family_is_anybodys_of_the_other(
    stage: Stage, mine: int, family: int, address: str
) -> None:
    where = {"family": family, "address": address, "port": port_of(stage, mine)}
    for verdict in (Verdict(0), Verdict.SELECTED):
        agent = stage.agent(verdict)
        assert stage.asks(agent, f"{ECHO}; {ASK}; s.close()".format(**where)) == [address, where["port"]]


def test_a_resolver_of_this_machine_may_be_at_the_loopback_of_ipv6(stage: Stage) -> None:
    server, agent = stage.box.agent(inside=False), stage.agent()
    server("import select; sockets = [socket.socket(10, 2)]; sockets[0].bind(('::1', 53))")
    stage.box._held.callback(server._process.kill)
    server.start(SERVE)
    stage.lead.meet("::1")
    answer, whose, _, port = stage.asks(agent, f"{sockets_of(10)}; {SENDTO.format('::1')}")
    assert is_led(answer, port)
    assert whose == "::1"
    names = "answer += [s.getsockname()[0], s.getpeername()[0]]"
    answer, port, *mine_and_peer = stage.asks(agent, f"{sockets_of(10)}; {CONNECT.format('::1')}; {names}")
    assert is_led(answer, port)
    assert mine_and_peer == ["::1", "::1"]


def test_who_sends_to_a_relay_by_itself_gets_nothing_of_it(stage: Stage) -> None:
    """This machine's rules may let it ask nobody, or let what it asks cost others their answers."""
    stranger, agent = stage.agent(Verdict(0)), stage.agent()
    for family, address, server in ((socket.AF_INET, "127.0.0.1", V4), (socket.AF_INET6, "::1", V6)):
        relay, own = port_of(stage, family), address if family == socket.AF_INET else V6
        for name in (address, own):
            stage.asks(stranger, f"{sockets_of(family)}; s.sendto(b'stranger', ({name!r}, {relay})); answer = 1")
        assert is_led(*stage.asks(agent, f"{sockets_of(family)}; {CONNECT.format(server)}"))
    assert [message for sent, _, message in stage.heard if sent] == [b"q", b"q"]
    assert len(stage.relay) == 2


@pytest.mark.parametrize(("family", "named"), [(2, V4), (10, V6), (10, MAPPED)], ids=["v4", "v6", "mapped"])
def test_a_connected_socket_hears_its_server_whoever_has_it_now_and_whatever_was_set_since(
    stage: Stage, family: int, named: str
) -> None:
    """It is at the relay, and would hear nobody else: a child that is not selected names the server in its messages."""
    for verdict, option in itertools.product(
        (Verdict(0), Verdict.UNDECIDED, Verdict.SELECTED), ("", "s.setsockopt(1, 36, 7); ")
    ):
        agent = stage.agent()
        stage.asks(agent, f"{sockets_of(family)}; s.connect(({named!r}, 53))")
        stage.say(agent, verdict)
        answer, whose, *_, port = stage.asks(agent, f"s.settimeout(3); {option}{SENDTO.format(named)}")
        assert is_led(answer, port)
        assert whose == named
        elsewhere = stage.asks(agent, f"s.settimeout(0.2); s.sendto(b'silence', ({named!r}, 54)); s.recv(9)")
        assert elsewhere in ("EAGAIN", "timed out", "ETIMEDOUT", "ECONNREFUSED")
    assert b"silence" not in [message for _, _, message in stage.heard]
