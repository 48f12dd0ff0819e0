"""Connections that come in for what is in a cgroup are led to the gate, as long as there is one; no others are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from redirect_sandbox import Sandbox
from steering_stage import Stage

from mitmsec.core.model import Endpoint, OnFailure
from mitmsec_redirect import bpffs
from mitmsec_redirect.connect_hook import reap
from mitmsec_redirect.inbound_records import InboundKind
from mitmsec_redirect.steering_records import Steered

pytestmark = pytest.mark.root
ACCEPT = "c, peer = l.accept(); answer = [list(peer[:2]), list(c.getpeername()[:2]), list(c.getsockname()[:2])]"
LISTENERS = """
import socket, sys, time
first, count, begins_ns = map(int, sys.argv[1:])
made = [socket.socket() for _ in range(count)]
for port, sock in enumerate(made, first):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
for place, sock in enumerate(made):
    while time.monotonic_ns() < begins_ns + place * 1_000_000:
        pass
    sock.listen()
print("listening", flush=True)
sys.stdin.read()
"""
BEGINS_AND_ENDS = """
import socket, sys
def listener():
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", int(sys.argv[1])))
    sock.listen()
    return sock
for _ in range(int(sys.argv[2])):
    listener().close()
last = listener()
print("listening", flush=True)
sys.stdin.read()
"""
REFUSED = pytest.raises(ConnectionRefusedError)


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with contextlib.ExitStack() as held:
        yield Stage(sandbox, held)


@pytest.mark.parametrize(
    ("listens", "called"),
    [
        *(("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.77.0.1"), ("::1", "::1"), ("::", "fd77::1"), ("::", "10.77.0.1")),
        *(("::ffff:127.0.0.1", "127.0.0.1"), ("::ffff:0.0.0.0", "10.77.0.1")),
    ],
)
def test_it_is_led_to_the_gate_with_both_its_addresses(stage: Stage, listens: str, called: str) -> None:
    port = stage.listen(listens)
    client = stage.call(called, port)
    led = stage.led(v6=":" in called)
    assert led.getsockname()[:2] == (called, port)
    assert led.getpeername()[:2] == client.getsockname()[:2]


@pytest.mark.parametrize(
    ("listens", "called"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "10.77.0.1"), ("::", "fd77::1")]
)
def test_the_gates_leg_reaches_the_program_which_sees_the_true_peer(stage: Stage, listens: str, called: str) -> None:
    port = stage.listen(listens)
    client = stage.call(called, port)
    leg = stage.leg(stage.led(v6=":" in called))
    assert leg.listener is not None
    assert (leg.listener.pid, leg.called) == (stage.agent.pid, Endpoint.of(called, port))
    with leg.connect() as carried:
        seen = stage.agent(ACCEPT)["answer"]
        mapped = "::ffff:" if listens == "::" and ":" not in called else ""
        peer = [mapped + client.getsockname()[0], client.getsockname()[1]]
        assert seen == [peer, peer, [mapped + called, port]]
        carried.setblocking(True)
        carried.sendall(b"on behalf")
        assert stage.agent("answer = c.recv(99).decode()")["answer"] == "on behalf"
    assert stage.hook.drain() == [], "the gate tells of it"


def test_a_socket_that_is_used_once_more_is_told_whom_it_calls_then(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    client = stage.call("127.0.0.1", port)
    with stage.leg(stage.led()).connect(), socket.create_server(("127.0.0.3", 0)) as other:
        assert stage.agent(ACCEPT)["answer"][0] == list(client.getsockname())
        assert stage.agent(anew(other.getsockname()[1]))["answer"] == list(other.getsockname())


def test_what_a_socket_is_used_for_afterwards_is_no_end_of_what_came_in(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    stage.stall()
    stage.call("127.0.0.1", port)
    with socket.create_server(("127.0.0.3", 0)) as other:
        stage.agent(ACCEPT)
        stage.agent(anew(other.getsockname()[1]))
        stage.agent("c.close()")
    told = [record.kind for record in stage.hook.drain()]
    assert told == [InboundKind.BEGAN, InboundKind.ACCEPTED, InboundKind.ENDED]


def anew(port: int) -> str:
    """The accepted socket lets go, and calls 127.0.0.3 (connect(2) with AF_UNSPEC, for which Python has no name)."""
    return (
        "import ctypes, struct; ctypes.CDLL(None).connect(c.fileno(), struct.pack('=H14x', socket.AF_UNSPEC), 16); "
        f"c.connect(('127.0.0.3', {port})); answer = c.getpeername()"
    )


def test_who_does_not_listen_in_the_cgroup_has_its_connections(stage: Stage, sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        client = stage.call("127.0.0.1", other.getsockname()[1])
        accepted, peer = other.accept()
        accepted.close()
        assert peer == client.getsockname()
    assert sandbox.nobody_came()


def test_a_port_is_led_as_long_as_anybody_listens_on_it(stage: Stage, sandbox: Sandbox) -> None:
    port = stage.listen("127.0.0.1")
    stage.agent(f"m = socket.create_server(('10.77.0.1', {port}))")
    stage.agent("l.close()")
    stage.call("10.77.0.1", port)
    stage.led()
    stage.agent("m.close()")
    with REFUSED:
        stage.call("10.77.0.1", port)
    with socket.create_server(("127.0.0.1", port)) as other:
        stage.call("127.0.0.1", port)
        other.accept()[0].close()
    assert sandbox.nobody_came()


def test_who_begin_to_listen_on_one_port_at_the_same_moment_are_all_counted(stage: Stage, sandbox: Sandbox) -> None:
    """Else the port would be led no more once one of them has closed."""
    ports, begins_ns = range(7000, 7400), time.monotonic_ns() + 3 * 10**9
    command = [sys.executable, "-I", "-S", "-c", LISTENERS, str(ports.start), str(len(ports)), str(begins_ns)]
    enters = partial((sandbox.cgroup.path / "cgroup.procs").write_text, "0")
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=enters) for _ in range(2)
    ]
    try:
        assert [child.stdout.readline() for child in children if child.stdout] == [b"listening\n"] * 2
        assert stage.counts() == [2] * len(ports)
    finally:
        for child in children:
            child.communicate()
    assert stage.counts() == [0] * len(ports), "nobody listens any more"


def test_of_who_begin_and_end_on_one_port_at_once_none_undoes_what_the_other_counts(
    stage: Stage, sandbox: Sandbox
) -> None:
    command = [sys.executable, "-I", "-S", "-c", BEGINS_AND_ENDS, "7000", "3000"]
    enters = partial((sandbox.cgroup.path / "cgroup.procs").write_text, "0")
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=enters) for _ in range(3)
    ]
    try:
        assert [child.stdout.readline() for child in children if child.stdout] == [b"listening\n"] * 3
        assert stage.counts() == [3], "each has one listener left"
    finally:
        for child in children:
            child.communicate()
    assert stage.counts() == [0]


def test_other_terms_are_exchanged_and_it_may_be_led_anew(stage: Stage, sandbox: Sandbox) -> None:
    port = stage.listen("127.0.0.1")
    stage.stall()
    stage.steering.lead(OnFailure.CLOSED)
    with REFUSED:
        stage.call("127.0.0.1", port)
    stage.steering.detach()
    stage.call("127.0.0.1", port)
    assert sandbox.nobody_came()
    stage.beat()
    stage.steering.lead(OnFailure.OPEN)
    stage.call("127.0.0.1", port)
    stage.led()


@pytest.mark.parametrize(("ours", "theirs"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
def test_who_listens_on_the_same_port_at_another_address_has_its_connections(
    stage: Stage, sandbox: Sandbox, ours: str, theirs: str
) -> None:
    port = stage.listen(ours)
    with socket.create_server((theirs, port)) as other:
        client = stage.call(theirs, port)
        accepted, peer = other.accept()
        accepted.close()
        assert peer == client.getsockname(), "from its peer itself, not from a leg"
    assert sandbox.nobody_came()
    stage.call(ours, port)
    stage.led()


def test_to_listen_on_a_gates_port_at_another_address_leads_nobody_away_from_it(stage: Stage) -> None:
    """Another session's gate, say: its own connections are nobody's to refuse."""
    with socket.create_server(("127.0.0.1", 0)) as gate:
        port = gate.getsockname()[1]
        assert stage.listen("127.0.0.2", port) == port
        client = stage.call("127.0.0.1", port)
        accepted, peer = gate.accept()
        accepted.close()
        assert peer == client.getsockname()


@pytest.mark.parametrize("called", ["10.77.0.1", "fd77::1"])
def test_who_listens_on_one_device_alone_has_its_connections_and_they_are_told(
    stage: Stage, sandbox: Sandbox, called: str
) -> None:
    """The gate's leg would reach it; whose it is, the gate would not learn, and so ask no policy and keep no record."""
    family = socket.AF_INET6 if ":" in called else socket.AF_INET
    bound = "l.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'va'); l.bind(('', 0)); l.listen()"
    port = stage.agent(f"l = socket.socket({int(family)}); {bound}; answer = l.getsockname()[1]")["answer"]
    with socket.socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"va")
        client.settimeout(5)
        client.connect((called, port))
        assert stage.agent(ACCEPT)["answer"][0] == list(client.getsockname()[:2])
    assert InboundKind.ACCEPTED in {record.kind for record in stage.hook.drain()}
    assert sandbox.nobody_came()


def test_a_link_local_address_is_led_though_it_is_of_one_device(stage: Stage) -> None:
    subprocess.run(["ip", "-6", "addr", "add", "fe80::77/64", "dev", "va", "nodad"], check=True)
    where = socket.getaddrinfo("fe80::77%va", 0, socket.AF_INET6, socket.SOCK_STREAM)[0][4]
    bound = f"l = socket.socket(socket.AF_INET6); l.bind({where!r}); l.listen(); answer = l.getsockname()[1]"
    port = stage.agent(bound)["answer"]
    with socket.create_connection(("fe80::77%va", port), 5):
        leg = stage.leg(stage.led(v6=True))
        assert leg.listener is not None
        assert leg.listener.pid == stage.agent.pid


def test_a_listener_in_another_network_namespace_is_nobodys_here(stage: Stage, sandbox: Sandbox) -> None:
    elsewhere = "import subprocess; os.unshare(os.CLONE_NEWNET); subprocess.run(['ip', 'link', 'set', 'lo', 'up'])"
    stage.agent(elsewhere)
    port = stage.listen("127.0.0.1")
    with socket.create_server(("127.0.0.1", port)) as here:
        stage.call("127.0.0.1", port)
        here.accept()[0].close()
    assert sandbox.nobody_came()


def test_without_a_gate_open_lets_it_in_and_it_is_told(stage: Stage, sandbox: Sandbox) -> None:
    port = stage.listen("127.0.0.1")
    stage.stall()
    client = stage.call("127.0.0.1", port)
    assert stage.agent(ACCEPT)["answer"][0] == list(client.getsockname())
    assert stage.steering.missed() == {Steered.LET_IN: 1}
    assert stage.steering.missed() == {}
    assert [one.kind.name for one in stage.hook.drain()] == ["BEGAN", "ACCEPTED"]
    stage.beat()
    stage.call("127.0.0.1", port)
    stage.led()


def test_without_a_gate_closed_refuses_it(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Stage(sandbox, held, OnFailure.CLOSED)
        port = stage.listen("127.0.0.1")
        stage.stall()
        with REFUSED:
            stage.call("127.0.0.1", port)
        assert stage.steering.missed() == {Steered.REFUSED: 1}


def test_a_family_in_which_the_gate_does_not_listen_follows_on_failure(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Stage(sandbox, held, gates=1)
        port = stage.listen("::1")
        client = stage.call("::1", port)
        assert stage.agent(ACCEPT)["answer"][0] == list(client.getsockname()[:2])
        assert stage.steering.missed() == {Steered.LET_IN: 1}


def test_after_detach_it_comes_in_as_ever(stage: Stage, sandbox: Sandbox) -> None:
    port = stage.listen("127.0.0.1")
    stage.steering.detach()
    stage.steering.detach()
    client = stage.call("127.0.0.1", port)
    assert stage.agent(ACCEPT)["answer"][0] == list(client.getsockname())
    assert sandbox.nobody_came()


def test_legs_of_a_gate_that_has_gone_are_forgotten(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    stage.call("127.0.0.1", port)
    stage.leg(stage.led())
    assert len(list(stage.steering._maps["legs"].keys())) == 1
    stage.steering.forget_legs()
    assert list(stage.steering._maps["legs"].keys()) == []


def test_pinned_it_outlives_who_made_it_until_it_is_reaped(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    try:
        with contextlib.ExitStack() as held:
            pins = folder / "session"
            pins.mkdir(mode=0o700)
            stage = Stage(sandbox, held, OnFailure.CLOSED, pins)
            port = stage.listen("127.0.0.1")
            stage.stall()
            stage.steering.close()
            stage.hook.close()
            with REFUSED:
                stage.call("127.0.0.1", port)
            later = stage.agent("l = socket.create_server(('127.0.0.1', 0)); answer = l.getsockname()[1]")["answer"]
            with REFUSED:
                stage.call("127.0.0.1", later)
            assert reap(pins) == 2
            stage.call("127.0.0.1", later)
    finally:
        bpffs.unmount(folder)


def test_who_is_closed_has_nothing_to_detach(stage: Stage) -> None:
    """A session that could not begin closes what it has, and ends as all do."""
    stage.steering.close()
    with open("/dev/null") as other:  # who has the descriptor's number now is not to suffer
        stage.steering.detach()
        stage.steering.close()
        assert os.path.samestat(os.fstat(other.fileno()), os.stat("/dev/null"))
