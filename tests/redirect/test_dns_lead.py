"""DNS of selected programs through the gate's relay: real hooks, programs and server, and what each of them sees."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from lead_stage import LOOPBACK, MAPPED, V4, V6, Stage, is_led, serve_elsewhere, sockets_of
from redirect_sandbox import Agent, Sandbox, beat, ip, stall

from mitmsec.core.model import Endpoint, Quic
from mitmsec_redirect import dns_lead, netns, records
from mitmsec_redirect.dns_lead import Lead, LedServers
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root
FAMILIES = pytest.mark.parametrize(
    ("family", "named", "server", "local"),
    [(2, V4, V4, V4), (10, V6, V6, V6), (10, MAPPED, V4, MAPPED), (2, LOOPBACK, LOOPBACK, "127.0.0.1")],
    ids=["v4", "v6", "mapped", "loopback"],
)
FAR = "198.51.100.53"  # by the default route, to nobody
SENDTO = "s.sendto(b'q', ({!r}, 53)); d, f = s.recvfrom(999); answer = [d.decode(), *f[:2], s.getsockname()[1]]"
CONNECT = "s.connect(({!r}, 53)); s.send(b'q'); answer = [s.recv(999).decode(), s.getsockname()[1]]"


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with contextlib.ExitStack() as held:
        made = Stage(sandbox, held)
        made.lead.meet(V4)
        made.lead.meet(V6)
        made.lead.meet(LOOPBACK)
        yield made


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_asked_directly(stage: Stage, agent: Agent, code: str = f"{sockets_of(2)}; {CONNECT.format(V4)}") -> bool:
    before = len(stage.heard)
    answer, *_, port = stage.asks(agent, code)
    assert len(stage.heard) == before + 2 * is_led(answer, port)
    return not is_led(answer, port)


# --- what is led, and that nobody can tell ----------------------------------------------------------------------------
@FAMILIES
def test_a_program_finds_its_server_at_the_other_end_and_itself_where_it_would_be_and_the_gate_hears_both(
    stage: Stage, family: int, named: str, server: str, local: str
) -> None:
    agent, behind = stage.agent(), Endpoint.of(server, 53)
    for _ in range(2):
        answer, whose, from_port, port = stage.asks(agent, f"{sockets_of(family)}; {SENDTO.format(named)}")
        assert (whose, from_port) == (named, 53)
        assert is_led(answer, port)
        assert stage.heard[-2:] == [(True, behind, b"q"), (False, behind, answer.encode())]
    more = "s.send(b'r'); d, f = s.recvfrom(999); answer += [s.getpeername()[:2], f[:2], s.getsockname()[0]]"
    answer, port, peer, whose, mine = stage.asks(agent, f"{sockets_of(family)}; {CONNECT.format(named)}; {more}")
    assert is_led(answer, port)
    assert peer == whose == [named, 53]
    assert mine == local, "for a server that is one of this machine's own addresses"
    assert [message for _, _, message in stage.heard][::2] == [b"q", b"q", b"q", b"r"]


@FAMILIES
def test_the_record_of_a_flow_shows_the_true_server_and_its_counts(
    stage: Stage, family: int, named: str, server: str, local: str
) -> None:
    agent = stage.agent()
    stage.asks(agent, f"{sockets_of(family)}; {SENDTO.format(named)}; {SENDTO.format(named)}")
    stage.asks(agent, f"t = socket.socket({family}, 2); t.connect(({named!r}, 53))")
    sent, connected = stage.flows()
    assert sent.remote == connected.remote == Endpoint.of(server, 53)
    assert (sent.pid, sent.selected, connected.connected) == (agent.pid, True, True)
    counts = stage.hook.counts(sent.key)
    assert counts is not None
    assert (counts.sent, counts.received) == (2, 2)


@pytest.mark.parametrize(
    ("family", "server", "local"), [(2, "10.77.0.2", "10.77.0.1"), (10, "fd77::2", "fd77::1")], ids=["v4", "v6"]
)
def test_a_server_on_another_machine_sees_the_address_that_it_would_have_seen(
    stage: Stage, family: int, server: str, local: str
) -> None:
    """And so does the program of itself, bound or not, and also when it is connected elsewhere."""
    with contextlib.ExitStack() as held:
        serve_elsewhere(stage.box, held)
        stage.connect_hook.refresh_routes()
        stage.lead.meet(server)
        agent = stage.agent()
        for bind in ("", f"s.bind(({local!r}, 0)); "):
            answer, whose, _, port = stage.asks(agent, f"{sockets_of(family)}; {bind}{SENDTO.format(server)}")
            assert is_led(answer, port)
            assert (answer.split()[2], whose) == (local, server)
            names = "answer += [s.getsockname()[0], s.getpeername()[0]]"
            connected = f"{sockets_of(family)}; {bind}{CONNECT.format(server)}; {names}"
            answer, port, mine, peer = stage.asks(agent, connected)
            assert is_led(answer, port)
            assert (answer.split()[2], mine, peer) == (local, local, server)
            assert stage.asks(agent, f"s.connect(({server!r}, 9)); answer = s.getsockname()[0]") == local


def test_long_messages_and_empty_ones_keep_their_bounds_and_each_program_has_a_port_of_its_own(stage: Stage) -> None:
    code = (
        f"{sockets_of(2)}; s.connect(({V4!r}, 53)); answer = []\n"
        "for n in (0, 60000, 1): s.send(b'x' * n); answer.append(s.recv(65535).decode().split(' ')[0])"
    )
    assert [len(one) for one in stage.asks(stage.agent(), code)] == [0, 60000, 1]
    asked = [stage.asks(stage.agent(), f"{sockets_of(2)}; {CONNECT.format(V4)}") for _ in range(2)]
    assert len({answer for answer, _ in asked}) == 2


# --- what is not ------------------------------------------------------------------------------------------------------
def test_who_is_not_selected_or_not_judged_yet_asks_as_ever(stage: Stage) -> None:
    for verdict in (Verdict(0), Verdict.UNDECIDED, Verdict.SELECTED | Verdict.OWN_TRAFFIC):
        agent = stage.agent(verdict)
        assert is_asked_directly(stage, agent)
        assert is_asked_directly(stage, agent, f"{sockets_of(2)}; {SENDTO.format(V4)}")


def test_everything_includes_whom_nobody_has_judged(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Stage(sandbox, held, everything=True)
        assert is_asked_directly(stage, sandbox.agent())
        assert [flow.remote.address for flow in stage.flows()] == [V4]
        assert not is_asked_directly(stage, sandbox.agent())


BOUND = {
    "its device": "s.setsockopt(1, 25, b'lo')",
    "a mark": "s.setsockopt(1, 36, 7)",
    "an interface to send by": "s.setsockopt(0, 50, (1).to_bytes(4, 'big'))",
    "port 53": "s.bind(('10.77.0.1', 53))",  # a server, which answers another one
}


def test_a_socket_that_is_bound_to_more_than_an_address_is_not_led_nor_a_message_that_names_its_source(
    stage: Stage,
) -> None:
    agent = stage.agent()
    for what, option in BOUND.items():
        for call in (SENDTO, CONNECT):
            assert is_asked_directly(stage, agent, f"{sockets_of(2)}; {option}; {call.format(V4)}"), what
    sticky = "s.setsockopt(41, 50, bytes(16) + (1).to_bytes(4, 'little'))"
    for option, call in itertools.product(("s.setsockopt(41, 76, (1).to_bytes(4, 'big'))", sticky), (SENDTO, CONNECT)):
        assert is_asked_directly(stage, agent, f"{sockets_of(10)}; {option}; {call.format(V6)}"), option
    packed = "bytes(4) + socket.inet_aton('10.77.0.1') + bytes(4)"
    send = f"s.sendmsg([b'q'], [(0, 8, {packed})], 0, ({V4!r}, 53))"
    code = f"{sockets_of(2)}; {send}; answer = [s.recv(999).decode(), s.getsockname()[1]]"
    assert is_asked_directly(stage, agent, code)


def test_other_ports_other_namespaces_and_what_has_no_route_are_not_led(stage: Stage) -> None:
    agent = stage.agent()
    stage.asks(agent, f"{sockets_of(2)}; s.sendto(b'q', ({V4!r}, 54)); s.connect(({V4!r}, 5353)); s.send(b'q')")
    stage.lead.meet("198.51.100.53")
    ip("route add unreachable 198.51.100.53/32")
    stage.connect_hook.refresh_routes()
    for call in ("connect(('198.51.100.53', 53))", "sendto(b'q', ('198.51.100.53', 53))"):
        assert stage.asks(agent, f"{sockets_of(2)}; s.{call}") == "EHOSTUNREACH"
    stage.connect_hook._maps["namespaces"].delete(records.COOKIE.pack(netns.current_cookie()))
    assert is_asked_directly(stage, agent)
    assert stage.heard == []


def test_a_server_that_is_met_is_led_from_then_on_as_long_as_there_are_relays(stage: Stage) -> None:
    agent = stage.agent()
    other = f"{sockets_of(2)}; {SENDTO.format('203.0.113.54')}"
    assert is_asked_directly(stage, agent, other)
    assert "203.0.113.54" not in stage.lead.servers
    stage.flows()
    assert stage.lead.servers == (V4, V6, LOOPBACK, "203.0.113.54")
    assert not is_asked_directly(stage, agent, other)
    stage.hook.change(quic=Quic.BYPASS)
    assert not is_asked_directly(stage, agent, other)
    for number in range(10):
        stage.lead.meet(f"198.51.100.{number}")
    assert (len(stage.lead.servers), stage.lead.beyond) == (9 - dns_lead.RESERVED, 5 + dns_lead.RESERVED)
    stage.lead.meet("198.51.100.9")
    assert stage.lead.beyond == 5 + dns_lead.RESERVED


def test_no_relay_is_given_for_an_undecided_program_nor_to_what_is_no_single_machine_or_on_a_link(stage: Stage) -> None:
    stage.asks(stage.agent(Verdict.UNDECIDED), f"{sockets_of(2)}; {SENDTO.format('203.0.113.54')}")
    assert [flow.selected for flow in stage.flows()] == [False]
    assert stage.lead.servers == (V4, V6, LOOPBACK)
    for address in ("224.0.0.251", "0.0.0.0", "255.255.255.255", "::", "ff02::fb", "fe80::1"):
        stage.lead.meet(address)
    assert (stage.lead.servers, stage.lead.beyond) == ((V4, V6, LOOPBACK), 0)


# --- a socket that goes elsewhere -------------------------------------------------------------------------------------
def test_a_socket_that_is_connected_elsewhere_is_as_if_it_had_not_been_led(stage: Stage) -> None:
    """Whatever its program is by then."""
    stage.lead.meet(FAR)
    other = stage.agent(Verdict(0))
    for server, verdict in itertools.product((V4, FAR), (Verdict.SELECTED, Verdict(0))):
        first = f"{sockets_of(2)}; s.connect(({server!r}, 53))"
        then = "s.connect(('10.77.0.1', 9)); answer = [s.getpeername(), s.getsockname()[0]]"
        agent = stage.agent()
        stage.asks(agent, first)
        stage.say(agent, verdict)
        assert stage.asks(agent, then) == stage.asks(other, f"{first}; {then}")


def test_a_socket_whose_program_is_not_selected_any_more_still_hears_its_server(stage: Stage) -> None:
    agent = stage.agent()
    stage.asks(agent, f"{sockets_of(2)}; s.sendto(b'q', ({V4!r}, 53)); import select; select.select([s], [], [], 20)")
    stage.say(agent, Verdict(0))
    assert stage.asks(agent, "answer = s.recvfrom(999)[1]") == [V4, 53]


def test_a_connected_socket_that_sends_to_a_name_goes_where_it_is_connected(stage: Stage) -> None:
    """Who is connected to the server hears no relay, and the other way round."""
    early, late = stage.agent(Verdict(0)), stage.agent()
    stage.asks(early, f"{sockets_of(2)}; s.connect(({V4!r}, 53))")
    stage.say(early, Verdict.SELECTED)
    assert is_asked_directly(stage, early, SENDTO.format(V4))
    stage.asks(late, f"{sockets_of(2)}; s.connect(({V4!r}, 53))")
    stall(stage.connect_hook)
    answer, whose, _, port = late(SENDTO.format(V4))["answer"]
    assert is_led(answer, port)
    assert whose == V4


# --- failures ---------------------------------------------------------------------------------------------------------
def test_with_a_gate_that_stalls_or_has_gone_the_next_question_goes_to_the_server_itself(stage: Stage) -> None:
    agent = stage.agent()
    assert not is_asked_directly(stage, agent)
    stage.kill_gate()
    stall(stage.connect_hook)
    for code in (CONNECT, SENDTO):
        answer, *_, port = agent(f"{sockets_of(2)}; {code.format(V4)}")["answer"]
        assert not is_led(answer, port)
    beat(stage.connect_hook)


def test_what_a_dead_gate_had_not_read_the_next_one_answers(stage: Stage) -> None:
    agent = stage.agent()
    stage.kill_gate()
    stage.asks(agent, f"{sockets_of(2)}; s.connect(({V4!r}, 53)); s.send(b'q')")
    stage.relay = stage.on_loop(stage._relay)
    assert stage.asks(agent, "answer = s.recv(999).decode()").startswith("q of ")


def test_who_hears_nothing_of_two_questions_asks_the_server_itself(stage: Stage) -> None:
    """Whatever it is that swallows them: what a message says of its way, nobody can see."""
    agent = stage.agent()
    many = f"{sockets_of(2)}\nfor word in (b'silence', b'silence'): s.sendto(word, ({V4!r}, 53))"
    stage.asks(agent, many)
    until(lambda: len(stage.heard) == 2)
    assert is_asked_directly(stage, agent, SENDTO.format(V4))
    counted = stage.hook.counts(stage.flows()[0].key)
    assert counted is not None
    assert (counted.sent, counted.received) == (3, 1)


def test_a_server_that_refuses_is_met_by_the_program_itself_until_it_may_be_back(stage: Stage) -> None:
    agent = stage.agent()
    stage.lead.meet("10.77.0.1")  # where nobody listens
    refused = f"{sockets_of(2)}; s.connect(('10.77.0.1', 53)); s.send(b'q')"
    stage.asks(agent, refused)
    until(lambda: stage.asks(agent, f"{refused}; s.settimeout(0.2); answer = s.recv(9)") == "ECONNREFUSED")
    withdrawn = stage.on_loop(lambda: dict(stage.relay._withdrawn))
    assert list(withdrawn) == [Endpoint.of("10.77.0.1", 53)]
    stage.lead.renew()
    assert stage.asks(agent, f"{sockets_of(2)}; s.settimeout(0.2); s.connect(('10.77.0.1', 53)); s.recv(9)") != (
        "ECONNREFUSED"
    )


# --- the maps ---------------------------------------------------------------------------------------------------------
UNPRIVILEGED = """
import os, sys
from mitmsec.core.model import Endpoint
from mitmsec_redirect.dns_lead import LedServers
os.setgroups([]); os.setgid(65534); os.setuid(65534)
servers = LedServers(*map(int, sys.argv[1:4]))
server = servers.behind(int(sys.argv[4]))
servers.withdraw(server); servers.withdraw(server); servers.restore(server, int(sys.argv[4]))
print(server, servers.behind(1))
servers.close()
"""


def test_the_gate_needs_no_privilege_to_know_who_is_behind_a_relay(own_netns: None) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as relay:
        relay.bind(("127.0.0.1", 0))
        lead = Lead.open([relay])
        lead.meet(V4, named=True)
        lead.meet("203.0.113.54", named=True)
        fds = [os.dup(fd) for fd in lead.descriptors]
        command = [sys.executable, "-c", UNPRIVILEGED, *map(str, fds), str(relay.getsockname()[1])]
        done = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=30)
        assert done.stdout == f"{V4}:53 None\n", done.stderr
        assert (lead.servers, lead.beyond) == ((V4,), 1)
        LedServers(*fds).close()
        lead.close()
        lead.close()


def test_servers_beyond_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lead, "BEYOND_LIMIT", 2)
    with contextlib.closing(Lead.open([])) as lead:
        for number in range(3):
            lead.meet(f"203.0.113.{number}")
        assert lead.beyond == 2
