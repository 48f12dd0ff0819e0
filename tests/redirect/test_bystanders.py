"""Whoever is not in the cgroup passes by the handles: real programs, real packets, the real library."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from divert_packets import until
from divert_sandbox import (
    ORIGIN_PORT,
    ORIGIN_V4,
    ORIGIN_V6,
    OWN,
    Divert,
    at_rest,
    curl,
    link_to_an_origin,
    was_diverted,
)
from redirect_sandbox import ip

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import bpf, bystander_programs, clsact
from mitmsec_redirect.assembler import Assembler, Condition
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.bystanders import AFTER, BEFORE, Bystanders
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.clsact import EGRESS, TrafficControl
from mitmsec_redirect.connect_notes import ConnectNotes
from mitmsec_redirect.divert_library import open_handle
from mitmsec_redirect.divert_records import Layer
from mitmsec_redirect.divert_seams import SocketTold
from mitmsec_redirect.divert_signals import Choice
from mitmsec_redirect.filters import everything_filter
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import R1, R2, Selection
from mitmsec_redirect.verdicts import ENTRY, PID, Verdict, entry
from mitmsec_redirect.windivert import Windivert

pytestmark = pytest.mark.root
ORIGIN = f"http://{ORIGIN_V4}:{ORIGIN_PORT}"
ETH_P_ARP = 0x0806
ADDRESSES = pytest.mark.parametrize("host", [ORIGIN_V4, ORIGIN_V6], ids=["v4", "v6"])
TC_ACT_SHOT = 2
CURL_COULD_NOT_CONNECT, CURL_GOT_NOTHING, CURL_WAS_RESET = 7, 52, 56
LEAVER = """
import os, sys
sys.path[:0] = eval(sys.argv[1])
from pathlib import Path
from mitmsec_redirect.bystanders import Bystanders
Bystanders.outside(Path(sys.argv[2]), int(sys.argv[3]))
os._exit(0)
"""
_numbers = itertools.count()


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("bystanders", f"{os.getpid()}-{next(_numbers)}")
    yield made
    made.remove()


@pytest.fixture
def divert(cgroup: SessionCgroup) -> Iterator[Divert]:
    """Diverts curl, wherever; who is taken at all is in the cgroup."""
    with link_to_an_origin():
        with contextlib.closing(Divert({"curl": Choice.DIVERT})) as made:
            yield made
        with contextlib.closing(TrafficControl()) as control:
            assert control.clsact() == frozenset()


def opened(divert: Divert, cgroup: SessionCgroup, quic: Quic = Quic.BYPASS) -> Windivert:
    return divert.open(quic=quic, bystanders=partial(Bystanders.outside, cgroup.path))


def inside(cgroup: SessionCgroup, host: str = ORIGIN_V4, path: str = "") -> str:
    """What the origin says to a curl in the cgroup."""
    return curl(host=host, path=path, preexec_fn=lambda: (cgroup.path / "cgroup.procs").write_text("0")).stdout


@ADDRESSES
def test_the_cgroups_connections_are_diverted_and_others_are_not_even_seen(
    divert: Divert, cgroup: SessionCgroup, host: str
) -> None:
    backend = opened(divert, cgroup)
    assert was_diverted(inside(cgroup, host, "3000000"))
    before = at_rest(backend)
    assert not was_diverted(curl(host=host, path="3000000").stdout)
    after = backend.statistics()
    assert (after.syns.taken, after.data.taken) == (before.syns.taken, before.data.taken)
    assert [flow.origin.remote.address for flow in divert.expected] == [host]
    assert divert.faults == []


def test_how_deep_the_cgroup_lies_need_not_be_known(divert: Divert, cgroup: SessionCgroup, tmp_path: Path) -> None:
    """In a cgroup namespace nobody can tell; as little as of a part that is mounted by itself."""
    nested = cgroup.path / "a" / "b"
    nested.mkdir(parents=True)
    subprocess.run(["mount", "--bind", cgroup.path / "a", tmp_path], check=True)
    try:
        backend = divert.open(bystanders=partial(Bystanders.outside, tmp_path / "b"))
        assert was_diverted(inside(SessionCgroup(nested)))
        before = backend.statistics().syns.taken
        assert not was_diverted(inside(cgroup)), "of the cgroup above"
        assert backend.statistics().syns.taken == before
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_reset_by_the_gate_comes_to_the_program(divert: Divert, cgroup: SessionCgroup) -> None:
    opened(divert, cgroup)
    command = ["curl", "-sS", "--max-time", "10", f"http://{ORIGIN_V4}:1/"]  # nobody listens there
    done = subprocess.run(command, preexec_fn=lambda: (cgroup.path / "cgroup.procs").write_text("0"))
    assert done.returncode in {CURL_GOT_NOTHING, CURL_WAS_RESET, CURL_COULD_NOT_CONNECT}, "not that its time was over"
    assert [flow.origin.remote.port for flow in divert.expected] == [1], "and it was not the origin that said so"


def test_packets_to_a_remote_that_is_taken_as_a_whole_are_the_cgroups_alone(
    divert: Divert, cgroup: SessionCgroup
) -> None:
    backend = opened(divert, cgroup)
    for _ in range(6):
        assert was_diverted(inside(cgroup))
    before = at_rest(backend).data.taken
    assert not was_diverted(curl(path="3000000").stdout)
    assert backend.statistics().data.taken == before


def dropping_what_has_our_mark() -> int:
    asm = Assembler()
    asm.load(R2, R1, bystander_programs.SKB_MARK)
    asm.jump_if(R2, Condition.NOT_EQUAL, bystander_programs.LEFT_MARK, "next")
    asm.exit(TC_ACT_SHOT)
    asm.label("next")
    asm.exit(bystander_programs.NEXT_CLASSIFIER)
    return bpf.load_classifier(asm.code(), "ms_test")


def test_what_stays_within_the_machine_is_not_seen_though_it_is_the_cgroups(
    divert: Divert, cgroup: SessionCgroup
) -> None:
    backend = opened(divert, cgroup)
    before = backend.statistics()
    with socket.create_server(("", 0)) as server, ThreadPoolExecutor(1) as thread:
        answered = thread.submit(answer, server)
        for host in ("127.0.0.1", "10.78.0.1"):
            command = ["curl", "-sS", "--max-time", "10", f"http://{host}:{server.getsockname()[1]}/"]
            done = subprocess.run(
                command,
                capture_output=True,
                preexec_fn=lambda: (cgroup.path / "cgroup.procs").write_text("0"),
            )
            assert len(done.stdout) == 5_000_000
        answered.result()
    after = backend.statistics()
    assert (after.syns, after.data) == (before.syns, before.data)


def answer(server: socket.socket) -> None:
    """Two callers, five megabytes each."""
    for _ in range(2):
        with server.accept()[0] as accepted:
            accepted.recv(65536)
            accepted.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5_000_000))


def test_no_connection_of_the_cgroup_waits_for_a_filter(divert: Divert, cgroup: SessionCgroup) -> None:
    backend = opened(divert, cgroup)
    handles = {thread.native_id for thread in threading.enumerate() if thread.name == "divert-data"}
    for host in (ORIGIN_V4, ORIGIN_V6, ORIGIN_V4):
        assert was_diverted(inside(cgroup, host))
    until(lambda: backend.statistics().live == 0)
    assert {thread.native_id for thread in threading.enumerate() if thread.name == "divert-data"} == handles


def test_classifiers_of_others_see_packets_without_our_mark(divert: Divert, cgroup: SessionCgroup) -> None:
    opened(divert, cgroup)
    program, interface = dropping_what_has_our_mark(), socket.if_nametoindex("va")
    with contextlib.closing(TrafficControl()) as control:
        for priority, comes_through in ((AFTER + 1, True), (BEFORE + 1, False)):
            one = control.attach(interface, EGRESS, 1, priority, program, b"another")
            assert bool(curl("--connect-timeout", "2").stdout) is comes_through
            control.detach(one)
    os.close(program)


def test_what_has_a_mark_already_keeps_it_and_goes_the_longer_way(divert: Divert, cgroup: SessionCgroup) -> None:
    backend = opened(divert, cgroup)
    divert.choices = {}
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
        sock.connect((ORIGIN_V4, ORIGIN_PORT))
    assert backend.statistics().syns.taken == 1


@ADDRESSES
def test_others_may_speak_quic_and_the_cgroup_may_not(divert: Divert, cgroup: SessionCgroup, host: str) -> None:
    backend = opened(divert, cgroup, Quic.REFUSE)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, 443))
        sock.send(b"\xc0" + bytes(1199))
        assert len(sock.recv(2000)) == 1200
    assert backend.statistics().syns.taken == 0


@pytest.fixture
def notes() -> Iterator[ConnectNotes]:
    """Of everybody whose entry is none of ours: this process, its children get none."""
    with contextlib.closing(Map.create(MapKind.HASH, PID.size, ENTRY.size, 16, "ms_selected")) as verdicts:
        ours = ENTRY.pack(entry(time.monotonic_ns(), Verdict.OWN_TRAFFIC))
        verdicts.update(PID.pack(os.getpid()), ours)
        with (
            contextlib.closing(RunCgroups()) as runs,
            contextlib.closing(
                ConnectNotes.open(Selection(verdicts.fd, runs.fd, everything=True), OnFailure.OPEN)
            ) as made,
        ):
            yield made


@ADDRESSES
def test_beside_a_service_who_is_not_noted_is_not_seen_and_who_is_waits_for_no_filter(
    divert: Divert, notes: ConnectNotes, host: str
) -> None:
    backend = divert.open(bystanders=partial(Bystanders.unnoted, notes.sockets_fd))
    handles = {thread.native_id for thread in threading.enumerate() if thread.name == "divert-data"}
    assert was_diverted(curl(host=host, path="3000000").stdout)
    before = at_rest(backend)
    with socket.create_connection((host, ORIGIN_PORT), timeout=10) as ours:
        ours.sendall(b"GET /3000000 HTTP/1.0\r\n\r\n")
        with ours.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert len(body) > 3_000_000, head
    assert not was_diverted(body[:100].decode())
    after = backend.statistics()
    assert (after.syns.taken, after.data.taken) == (before.syns.taken, before.data.taken)
    assert [flow.origin.remote.address for flow in divert.expected] == [host]
    assert {thread.native_id for thread in threading.enumerate() if thread.name == "divert-data"} == handles
    assert divert.faults == []


@contextlib.contextmanager
def behind_us() -> Iterator[str]:
    """A machine that reaches the origin through our namespace, as a container does: its namespace's name."""
    name, us, it = f"mitmsec-behind-{os.getpid()}", "10.78.9.1", "10.78.0.50"
    ip(f"netns add {name}")
    try:
        ip(
            f"""
            link add vc type veth peer name eth0 netns {name}
            addr add {us}/32 dev vc
            link set vc up
            route add {it}/32 dev vc
            -n {name} addr add {it}/32 dev eth0
            -n {name} link set eth0 up
            -n {name} route add {us} dev eth0
            -n {name} route add default via {us}
            """
        )
        # At once: answers that wait are forgotten when any interface goes, of whatever namespace.
        for path, value in (("ip_forward", "1"), ("conf/va/proxy_arp", "1"), ("neigh/va/proxy_delay", "0")):
            Path("/proc/sys/net/ipv4", path).write_text(value)
        yield name
    finally:
        ip(f"netns delete {name}")


@pytest.mark.parametrize("is_runs", [False, True], ids=["another's", "the run's"])
def test_what_is_forwarded_is_not_seen_whoever_sent_it(divert: Divert, cgroup: SessionCgroup, is_runs: bool) -> None:
    """Where failures close, too: nobody here could say whose it is."""
    looked_at: list[SocketTold] = []
    divert.concerns = lambda told: looked_at.append(told) is None
    with behind_us() as name:
        backend = divert.open(on_failure=OnFailure.CLOSED, bystanders=partial(Bystanders.outside, cgroup.path))
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{name}", "curl", "-sS", "--max-time", "10", f"{ORIGIN}/3000000"],
            capture_output=True,
            preexec_fn=lambda: is_runs and (cgroup.path / "cgroup.procs").write_text("0"),
        )
        answer = done.stdout
        assert len(answer) > 3_000_000, done.stderr
        assert answer.startswith(b"10.78.0.50 "), "from its own address"
        told = backend.statistics()
        assert told.syns.taken + told.data.taken < 10, "a new link's multicast reports, and not 3 MB"
    assert (looked_at, divert.asked, divert.faults) == ([], [], [])


# Of these senders and receivers the library takes the frame's first bytes for an IP packet of any program.
MISTAKEN = ["0a0594b7fcf0 4e33a727585b", "ea3bf7b54ad4 4a095885bc41", "1ac20b3ea8b1 463a804915b1"]


@pytest.mark.usefixtures("own_netns")
def test_what_is_not_ip_goes_its_way_whatever_its_addresses(cgroup: SessionCgroup) -> None:
    """ARP that came back changed, or did not, would cut the machine off its network."""
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")  # a new link's multicast reports are IP
    everything = everything_filter(OWN).text
    with (
        contextlib.closing(open_handle(everything, Layer.NETWORK, priority=5)) as handle,
        contextlib.closing(Bystanders.outside(cgroup.path, OWN.gate_port)),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as near,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as far,
    ):
        near.bind(("va", 0))
        far.bind(("vb", 0))
        far.settimeout(5)
        for addresses in MISTAKEN:
            sender, receiver = (bytes.fromhex(address) for address in addresses.split())
            asked = (
                bytes.fromhex("0001 0800 06 04 0002")
                + sender
                + bytes([10, 79, 0, 1])
                + receiver
                + bytes([10, 79, 0, 2])
            )
            near.send(receiver + sender + ETH_P_ARP.to_bytes(2) + asked)
            assert far.recv(100)[14:] == asked
        assert handle.stats().taken == 0


@pytest.mark.usefixtures("own_netns", "only_sweeper")
def test_they_are_found_where_a_dead_process_has_left_them(cgroup: SessionCgroup) -> None:
    with (
        contextlib.closing(TrafficControl()) as control,
        contextlib.closing(open_handle("tcp.DstPort == 9", Layer.NETWORK, priority=5)),
    ):
        interface = socket.if_nametoindex("va")
        before = control.classifiers(interface)
        held = Bystanders.outside(cgroup.path, OWN.gate_port)
        assert len(control.classifiers(interface)) == len(before) + 2
        assert clsact.sweep() == 0, "as long as somebody holds them"
        held.close()
        assert control.classifiers(interface) == before
        command = [sys.executable, "-c", LEAVER, repr(sys.path), str(cgroup.path), str(OWN.gate_port)]
        subprocess.run(command, check=True)
        assert clsact.sweep() == 2 * len(control.clsact())
        assert control.classifiers(interface) == before
