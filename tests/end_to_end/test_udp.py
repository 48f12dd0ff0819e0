"""UDP of a command and of selected programs is recorded, flow by flow, and passes as it always did."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BARE, NFTABLES, RESOLVER, V4, V6, Mitmsec, Network, status_of
from names_stage import CONNECT

from mitmsec_redirect import bpf
from mitmsec_redirect.bpf import Attach

pytestmark = [pytest.mark.root, pytest.mark.joined, pytest.mark.unread]
PYTHON = (sys.executable, "-I", "-S", "-c")
ECHO = """
import socket, sys
v6 = ":" in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
if v6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
print(s.getsockname()[1], flush=True)
while True:
    data, whose = s.recvfrom(2000)
    s.sendto(data, whose)
"""
CLIENT = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
"""
THREE_TIMES = CLIENT + "for _ in range(3): s.sendto(b'asked', (address, port)); print(s.recvfrom(99)[0].decode())\n"
STAYS = THREE_TIMES + "import time; time.sleep(0.5)\n"  # long enough to be read
CONNECTED = CLIENT + "s.connect((address, port)); s.send(b'asked'); print(s.recv(99).decode(), s.getpeername()[1])\n"
SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
print(s.getsockname()[1], flush=True)
for _ in range(2):
    data, whose = s.recvfrom(2000)
    s.sendto(data, whose)
"""
LOOK_UP = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], 9))"
TRY = """
import socket, sys
try: socket.create_connection((sys.argv[2], int(sys.argv[1])), 5).recv(99)
except OSError: pass  # there is no gate yet
"""
EVERYWHERE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[1])):
    s.sendto(b"x", (f"127.77.{number >> 8 & 255}.{number & 255}", 40000 + (number >> 16)))
"""
WHEN_TOLD = (
    CLIENT
    + """
print("up", flush=True)
for line in sys.stdin:
    t = socket.socket(s.family, socket.SOCK_DGRAM)
    t.sendto(b"x", (address, int(line)))
    t.close()
    print("sent", flush=True)
"""
)
CAPTURED = f'[[rule]]\nname = "what it is asked"\naddress = ["{BARE}"]\naction = "capture"\n'
BLOCKED = '[[rule]]\nname = "nobody asks it"\naddress = ["127.0.0.1"]\naction = "block"\n'


def echo_at(network: Network, address: str, port: int = 0) -> str:
    """Somebody who answers, outside of any run; the port."""
    process = network.start(*PYTHON, ECHO, address, str(port), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return str(process.stdout.readline().strip())


LOOPBACK, MAPPED = "127.0.0.1", f"::ffff:{V4}"


@pytest.mark.parametrize(
    ("mitmsec", "asked"),
    [
        ("connect_hook", [V4, V6, MAPPED, LOOPBACK]),
        pytest.param("nftables", [V4], marks=NFTABLES.marks),
        ("windivert", [V4]),
    ],
    indirect=["mitmsec"],
)
def test_a_flow_is_recorded_with_its_program_and_its_datagrams(
    network: Network, mitmsec: Mitmsec, asked: list[str]
) -> None:
    servers = {address: address.removeprefix("::ffff:") for address in asked}
    ports = {address: echo_at(network, server) for address, server in servers.items()}
    script = "\n".join(shlex.join([*PYTHON, STAYS, *one]) + " &" for one in ports.items()) + "\nwait"
    done = mitmsec.run("--", "sh", "-c", script)
    assert done.stdout == "asked\n" * 3 * len(asked), done.stderr
    flows = {flow["remote"]["port"]: flow for flow in mitmsec.of_kind("connection")}
    assert {port: flow["remote"] for port, flow in flows.items()} == {
        int(port): {"address": servers[address], "port": int(port), "host": None} for address, port in ports.items()
    }
    for flow in flows.values():
        assert (flow["protocol"], flow["direction"], flow["outcome"]) == ("udp", "outbound", "completed")
        assert flow["local"]["port"] > 0
        assert flow["datagrams"] == {"sent": 3, "received": 3}
        assert "bytes" not in flow
        assert (flow["action"], flow["rule"]) == ("bypass", "defaults")
        assert flow["reason"] == "no rule matched; [defaults] decide; UDP passes unread"
        assert flow["process"]["exe"] == os.path.realpath(sys.executable)
        by_table = mitmsec.backend == "nftables"
        known = ("table", "sock_diag") if by_table else ("kernel", "connect_hook")
        assert (flow["process"]["confidence"], flow["process"]["source"]) == known
    assert len(mitmsec.of_kind("connection")) == len(asked)
    assert mitmsec.of_kind("fault") == []


def test_of_a_connected_socket_begin_and_end_are_known_and_no_count_and_refused_quic_is_recorded_once_as_refused(
    network: Network, mitmsec: Mitmsec
) -> None:
    port = echo_at(network, V4)
    script = "\n".join(shlex.join([*PYTHON, CONNECTED, *to]) for to in ((V4, port), (BARE, "443")))
    done = mitmsec.run("--", "sh", "-c", script)
    assert done.stdout == f"asked {port}\n", done.stderr
    assert "PermissionError" in done.stderr
    flow, refused = mitmsec.of_kind("connection")
    assert (flow["protocol"], flow["action"], flow["outcome"]) == ("udp", "bypass", "unseen")
    assert (flow["remote"]["address"], flow["remote"]["port"]) == (V4, int(port))
    assert "datagrams" not in flow
    assert "bytes" not in flow
    assert (refused["protocol"], refused["action"], refused["outcome"]) == ("quic", "block", "blocked")
    assert refused["bytes"] == {"sent": 0, "received": 0}


def test_who_is_spoken_to_first_has_an_inbound_flow_for_each_that_did(network: Network, mitmsec: Mitmsec) -> None:
    run = mitmsec.start("--", *PYTHON, SERVER, V4)
    assert run.stdout is not None
    port = run.stdout.readline().strip()
    for _ in range(2):
        asked = network.inside(*PYTHON, THREE_TIMES.replace("range(3)", "range(1)"), V4, port)
        assert subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout == "asked\n"
    run.communicate(timeout=30)
    assert run.returncode == 0
    flows = mitmsec.of_kind("connection")
    assert [flow["direction"] for flow in flows] == ["inbound"] * 2
    assert {flow["local"]["port"] for flow in flows} == {int(port)}
    assert len({flow["remote"]["port"] for flow in flows} - {int(port)}) == 2
    assert all(flow["datagrams"] == {"sent": 1, "received": 1} for flow in flows)


def test_a_well_known_port_gives_the_flow_its_protocol(network: Network, mitmsec: Mitmsec) -> None:
    ports = {53: "dns", 443: "quic"}
    for port in ports:
        echo_at(network, "127.0.0.99", port)
    policy = mitmsec.policy('[defaults]\naction = "bypass"\nquic = "bypass"\n')
    script = "\n".join(shlex.join([*PYTHON, THREE_TIMES, "127.0.0.99", str(port)]) for port in ports)
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", script)
    assert done.stdout == "asked\n" * 6, done.stderr
    flows = mitmsec.of_kind("connection")
    assert {flow["remote"]["port"]: flow["protocol"] for flow in flows} == ports
    counts = [(flow["action"], flow["datagrams"]) for flow in flows]
    assert counts == [("bypass", {"sent": 3, "received": 3})] * 2


def test_what_the_rule_says_stands_in_the_reason_and_the_flow_passes(network: Network, mitmsec: Mitmsec) -> None:
    """Of two rules, and of [defaults] that decrypt."""
    says = {V4: "passes unread", BARE: "not captured", "127.0.0.1": "a rule cannot block it"}
    rules = {V4: "defaults", BARE: "what it is asked", "127.0.0.1": "nobody asks it"}
    ports = {address: echo_at(network, address) for address in says}
    policy = mitmsec.policy(CAPTURED + BLOCKED)
    script = "\n".join(shlex.join([*PYTHON, THREE_TIMES, *one]) for one in ports.items())
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", script)
    assert done.stdout == "asked\n" * 9, done.stderr
    flows = {flow["remote"]["address"]: flow for flow in mitmsec.of_kind("connection")}
    assert {address: (flow["action"], flow["rule"]) for address, flow in flows.items()} == {
        address: ("bypass", rule) for address, rule in rules.items()
    }
    for address, flow in flows.items():
        assert says[address] in flow["reason"]


def test_a_flow_that_lives_long_is_on_record_while_it_does(network: Network, mitmsec: Mitmsec) -> None:
    port = echo_at(network, V4)
    run = mitmsec.start("--", *PYTHON, THREE_TIMES + "time = __import__('time'); time.sleep(13)", V4, port)
    assert run.communicate(timeout=60)[0] == "asked\n" * 3
    living, ended = mitmsec.events("--kind", "connection")
    assert (living["outcome"], living["datagrams"]) == ("open", {"sent": 3, "received": 3})
    assert (ended["connection"], ended["duration_ms"] > 12_000) == (living["connection"], True)


@pytest.mark.slow
def test_a_program_that_sends_everywhere_is_bounded_and_every_place_is_recorded_or_counted(mitmsec: Mitmsec) -> None:
    done = mitmsec.run("--", *PYTHON, EVERYWHERE, "100000", timeout_s=120)
    assert done.returncode == 0, done.stderr
    flows = mitmsec.of_kind("connection")
    faults = [event for event in mitmsec.of_kind("fault") if event["what"] == "udp_not_recorded"]
    assert len(flows) + sum(event["count"] for event in faults) == 100_000
    assert 0 < len(flows) <= 20_000
    assert len(faults) < 200
    assert {event["failed"] for event in faults} == {"open"}
    assert all("python" in event["detail"] for event in faults if "the last one" in event["detail"])


def test_what_ended_while_there_was_no_gate_is_recorded_by_the_next(network: Network, mitmsec: Mitmsec) -> None:
    run = mitmsec.start("--", *PYTHON, WHEN_TOLD, V4, "9", stdin=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    gate = next(pid for role, pid, _ in status_of(mitmsec).processes if role == "gate")
    os.kill(gate, signal.SIGKILL)
    for number in range(20):
        run.stdin.write(f"{5000 + number}\n")
        run.stdin.flush()
        assert run.stdout.readline() == "sent\n"
        time.sleep(0.02)
    run.communicate(timeout=60)  # it ends before there is another gate, and that is waited for
    ports = [flow["remote"]["port"] for flow in mitmsec.of_kind("connection")]
    told = [event for event in mitmsec.of_kind("fault") if event["what"] == "gate_died"]
    assert len(told) == 1
    assert set(ports) >= set(range(5010, 5020))
    assert len(ports) == len(set(ports))


@pytest.mark.joined(False)
def test_a_killed_supervisor_leaves_nothing_that_looks_at_udp(network: Network, mitmsec: Mitmsec) -> None:
    port = echo_at(network, V4)
    run = mitmsec.start("--", *PYTHON, WHEN_TOLD, V4, "9", stdin=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    status = status_of(mitmsec)
    ((_, _, cgroup),) = status.sessions
    assert looks_at_udp(cgroup)
    os.kill(status.supervisor, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while looks_at_udp(cgroup) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not looks_at_udp(cgroup)
    run.stdin.write(f"{port}\n")
    run.stdin.flush()
    assert run.stdout.readline() == "sent\n"
    run.communicate(timeout=30)
    assert mitmsec.run("--", *PYTHON, THREE_TIMES, V4, port).returncode == 0
    (flow,) = mitmsec.of_kind("connection")
    assert flow["datagrams"] == {"sent": 3, "received": 3}


# --- the service ------------------------------------------------------------------------------------------------------
@pytest.fixture
def selected(mitmsec: Mitmsec, tmp_path: Path) -> Iterator[Path]:
    """A Python of its own, which a service selects."""
    tmp_path.chmod(0o755)
    python = tmp_path / "selected-python"
    shutil.copy(os.path.realpath(sys.executable), python)
    text = f'[defaults]\naction = "bypass"\n[[application]]\nname = "ours"\npath = ["{python}"]\n'
    state = ("--state", str(mitmsec.state))
    start = mitmsec.command("start", *state, "--policy", mitmsec.policy(text))
    subprocess.run(start, check=True, capture_output=True, env=mitmsec.environment(), timeout=90)
    try:
        yield python
    finally:
        subprocess.run(mitmsec.command("stop", *state), check=False, capture_output=True, timeout=90)
        deadline = time.monotonic() + 20
        while (mitmsec.state / "run" / "control.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


@pytest.mark.joined(False)
def test_under_the_service_selected_programs_are_recorded_and_named_and_nobody_else_is(
    network: Network, resolver: None, speaker: str, mitmsec: Mitmsec, selected: Path
) -> None:
    """And what their resolver answers them names the flows that show no name."""

    def said(program: str | Path, *arguments: str) -> str:
        command = network.inside(str(program), *PYTHON[1:], *arguments)
        home = {"PYTHONHOME": sys.base_prefix}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def recorded(count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 30
        while len(flows := mitmsec.of_kind("connection")) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return flows

    port = echo_at(network, V4)
    for program in (sys.executable, selected):
        assert said(program, STAYS, V4, port) == "asked\n" * 3
    (flow,) = recorded(1)
    assert (flow["process"]["exe"], flow["datagrams"]) == (str(selected), {"sent": 3, "received": 3})
    for program in (sys.executable, selected):
        said(program, CONNECT, speaker, "plain.zone")
    named = {flow["protocol"]: flow for flow in recorded(3)[1:]}
    dns, plain = named.pop("dns"), named.popitem()[1]
    assert (dns["remote"]["address"], dns["process"]["exe"]) == (RESOLVER, str(selected))
    assert plain["remote"] == {"address": V4, "port": int(speaker), "host": "plain.zone", "named_by": "dns"}
    said_of_names = subprocess.run(
        mitmsec.command("status", "--state", str(mitmsec.state)), check=True, capture_output=True, text=True
    )
    assert f"from DNS, as answered by {RESOLVER}\n" in said_of_names.stdout
    os.kill(gate_of(mitmsec), signal.SIGKILL)
    assert V4 in said(selected, LOOK_UP, "plain.zone")  # held up by nobody
    deadline = time.monotonic() + 30
    while not any(flow["remote"]["host"] == "other.zone" for flow in mitmsec.of_kind("connection")):
        assert time.monotonic() < deadline, "the next gate hears nothing"
        said(selected, TRY, speaker, "other.zone")


def gate_of(mitmsec: Mitmsec) -> int:
    (pid,) = [pid for role, pid, _ in status_of(mitmsec).processes if role == "gate"]
    return pid


def looks_at_udp(cgroup: str) -> bool:
    """Some program is attached to the cgroup that is told of closed sockets (BPF_PROG_QUERY)."""
    folder = os.open(cgroup, os.O_RDONLY)
    try:
        query = ctypes.create_string_buffer(struct.pack("=IIIIQI", folder, Attach.SOCK_RELEASE, 0, 0, 0, 0), 64)
        answer = ctypes.CDLL(None, use_errno=True).syscall(bpf.SYSCALL_NUMBER[platform.machine()], 16, query, 64)
        assert answer == 0, os.strerror(ctypes.get_errno())
        return int(struct.unpack_from("=I", query, 24)[0]) > 0
    finally:
        os.close(folder)
