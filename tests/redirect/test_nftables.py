"""The rules against real sockets of real programs, in a network namespace of each test's own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from nft_stage import accepted, answer_http, beat, diverting, needs_nft, ruleset, who_answers
from redirect_sandbox import CONNECT_LOCAL, MAPPED, V4, V6, Origins, Sandbox

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Quic, Transport
from mitmsec_redirect import nft, nftables
from mitmsec_redirect.backend import BackendKind, BackendUnavailable
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.original_destination import original_destination
from mitmsec_redirect.records import Reason

pytestmark = [pytest.mark.root, needs_nft]
QUIC_V4 = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x' * 1200, ('203.0.113.9', 443))"
QUIC_V6 = "v = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); v.sendto(b'x' * 1200, ('2001:db8::9', 443))"


@pytest.fixture(autouse=True)
def _nothing_is_left(own_netns: None) -> Iterator[None]:
    yield
    assert ruleset() == ""


# --- diverted ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize(
    ("to", "origin", "name"),
    [
        (V4, "203.0.113.9", "203.0.113.9"),
        (V6, "2001:db8::9", "2001:db8::9"),
        (MAPPED, "203.0.113.9", "::ffff:203.0.113.9"),
    ],
    ids=["v4", "v6", "mapped"],
)
def test_a_connection_goes_to_the_gate_with_origin_and_owner(
    sandbox: Sandbox, on_failure: OnFailure, to: str, origin: str, name: str
) -> None:
    with diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        beat(backend)
        assert agent(f"s = connected({to}); answer = s.getpeername()[:2]") == {"answer": [name, 443]}
        found, owner = accepted(sandbox, backend, v6=":" in origin)
        assert found == Endpoint(address=origin, port=443)
        assert owner is not None
        assert (owner.pid, owner.uid, owner.confidence, owner.source) == (agent.pid, 0, Confidence.TABLE, "sock_diag")
        assert owner.comm == Path(f"/proc/{agent.pid}/comm").read_text().strip()
        assert (backend.diverted, backend.missed(), backend.lost()) == (1, [], {})


@pytest.mark.parametrize(("url", "v6"), [("http://203.0.113.9/", False), ("http://[2001:db8::9]/", True)])
def test_curl_gets_its_answer_from_the_gate(sandbox: Sandbox, url: str, v6: bool) -> None:
    with diverting(sandbox) as backend:
        beat(backend)
        command = f'echo 0 > {sandbox.cgroup.path}/cgroup.procs && exec curl -sS --max-time 5 "{url}"'
        with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) as curl:
            with (sandbox.listener_v6 if v6 else sandbox.listener_v4).accept()[0] as client:
                origin = original_destination(client)
                assert origin is not None
                peer = Endpoint.of(*client.getpeername()[:2])
                owner = backend.owner(peer, origin)
                answer_http(client, b"gate\n")
                assert curl.communicate(timeout=5)[0] == "gate\n"
                ended = backend.owner(peer, origin)
        assert origin == Endpoint(address="2001:db8::9" if v6 else "203.0.113.9", port=80)
        assert (owner.pid, owner.comm, owner.confidence) == (curl.pid, "curl", Confidence.TABLE)
        assert (ended.pid, ended.confidence) == (0, Confidence.UNKNOWN), "asked too late: nobody knows any more"


def test_a_shells_own_connection_carries_bytes_both_ways(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        beat(backend)
        talk = 'exec 3<>/dev/tcp/203.0.113.9/25; read -r hello <&3; echo "got $hello" >&3; cat <&3'
        command = f"echo 0 > {sandbox.cgroup.path}/cgroup.procs; {talk}"
        with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True) as shell:
            with sandbox.listener_v4.accept()[0] as client:
                client.settimeout(5)
                client.sendall(b"220 mail\n")
                assert client.recv(99) == b"got 220 mail\n"
                client.sendall(b"bye")
            assert shell.communicate(timeout=5)[0] == "bye"


def test_loopback_destinations_are_real_origins(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        for code, origin, v6 in (
            ("AF_INET, ('127.0.0.1', 8000)", "127.0.0.1:8000", False),
            ("AF_INET, ('0.0.0.0', 8001)", "127.0.0.1:8001", False),
            ("AF_INET, ('10.77.0.1', 8002)", "10.77.0.1:8002", False),
            ("AF_INET6, ('::1', 8003)", "[::1]:8003", True),
        ):
            beat(backend)
            assert agent(f"s = connected(socket.{code})") == {"answer": None}
            found, owner = accepted(sandbox, backend, v6=v6)
            assert str(found) == origin
            assert owner is not None
            assert owner.pid == agent.pid


def test_destinations_without_a_route_fail_as_before(sandbox: Sandbox) -> None:
    subprocess.run(["ip", "route", "del", "default"], check=True)
    with diverting(sandbox) as backend:
        beat(backend)
        assert sandbox.agent()(f"connected({V4})") == {"error": "ENETUNREACH"}
        assert (backend.diverted, sandbox.nobody_came()) == (0, True)


def test_two_connections_from_one_port_are_told_apart(sandbox: Sandbox) -> None:
    """Redirected they would be the same connection, so the kernel gives one of them another port on the gate's side."""
    with diverting(sandbox) as backend:
        agents = [sandbox.agent(), sandbox.agent()]
        for host, agent in enumerate(agents, 1):
            beat(backend)
            told = agent(f"""
                s = socket.socket(); s.settimeout(5); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(('10.77.0.1', 40001)); s.connect(('203.0.113.{host}', 443)); answer = s.getsockname()[1]
            """)
            assert told == {"answer": 40001}
        ports = set()
        for host, agent in enumerate(agents, 1):
            with sandbox.listener_v4.accept()[0] as client:
                peer, origin = Endpoint.of(*client.getpeername()), original_destination(client)
            assert origin == Endpoint(address=f"203.0.113.{host}", port=443)
            assert backend.owner(peer, origin).pid == agent.pid
            ports.add(peer.port)
        assert len(ports) == 2


def test_an_owner_is_unknown_where_conntrack_says_otherwise(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        beat(backend)
        agent(f"s = connected({V4})")
        with sandbox.listener_v4.accept()[0] as client:
            peer = Endpoint.of(*client.getpeername())
        for client_, origin in ((peer, Endpoint(address="9.9.9.9", port=443)), (origin_of(1), origin_of(2))):
            assert backend.owner(client_, origin).confidence is Confidence.UNKNOWN


def test_an_owner_is_unknown_when_the_kernel_cannot_be_asked(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        beat(backend)
        agent(f"s = connected({V4})")
        backend._owners.close()
        _, owner = accepted(sandbox, backend)
        assert owner is not None
        assert (owner.pid, owner.source, owner.confidence) == (0, "sock_diag", Confidence.UNKNOWN)
        agent(QUIC_V4)
        assert [(one.pid, one.confidence) for one in backend.missed()] == [(0, Confidence.UNKNOWN)]
        backend._link.close()
        assert backend.owner(origin_of(1), origin_of(2)).source == "conntrack"


def test_a_flood_is_collected_in_bounded_pieces_and_counted_whole(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        beat(backend)
        sandbox.agent()("""
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            for port in range(3000):
                try: u.sendto(b'x', (f'203.0.113.{port % 200 + 1}', 443))
                except PermissionError: pass
        """)
        found, pieces = [], 0
        while piece := backend.missed():
            found += piece
            pieces += 1
            assert len(piece) <= nftables.MISSED_LIMIT + 1
        assert pieces > 1
        assert len(found) + backend.lost().get(Reason.QUIC_REFUSED, 0) == 3000


def origin_of(port: int) -> Endpoint:
    return Endpoint(address="10.77.0.1", port=port)


# --- not diverted -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_failure", OnFailure)
def test_quic_is_refused_at_once_with_its_owner_on_record(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        beat(backend)
        assert [agent(QUIC_V4), agent(QUIC_V6)] == [{"error": "EPERM"}] * 2
        assert backend.lost() == {Reason.QUIC_REFUSED: 2}
        missed = backend.missed()
        assert [str(one.remote) for one in missed] == ["203.0.113.9:443", "[2001:db8::9]:443"]
        assert {(one.reason, one.transport, one.denied) for one in missed} == {
            (Reason.QUIC_REFUSED, Transport.UDP, True)
        }
        assert {(one.pid, one.uid, one.confidence) for one in missed} == {(agent.pid, 0, Confidence.TABLE)}
        assert backend.lost() == {}
        assert agent(QUIC_V4.replace("443", "53")) == {"answer": None}


def test_quic_that_is_bypassed_passes(sandbox: Sandbox) -> None:
    with diverting(sandbox, OnFailure.CLOSED, Quic.BYPASS) as backend:
        beat(backend)
        assert sandbox.agent()(QUIC_V4) == {"answer": None}
        assert backend.missed() == []


@pytest.mark.parametrize("on_failure", OnFailure)
def test_the_gates_own_listeners_are_no_destination(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        for family, to in (
            ("AF_INET", f"('127.0.0.1', {sandbox.port_v4})"),
            ("AF_INET", f"('0.0.0.0', {sandbox.port_v4})"),
            ("AF_INET6", f"('::ffff:127.0.0.1', {sandbox.port_v4})"),
            ("AF_INET6", f"('::1', {sandbox.port_v6})"),
        ):
            beat(backend)
            assert agent(f"connected(socket.{family}, {to})") == {"error": "ECONNREFUSED"}
        assert {(one.reason, one.denied) for one in backend.missed()} == {(Reason.OWN_LISTENER, True)}
        assert sandbox.nobody_came()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_stalled_gate_is_left_alone_until_it_beats_again(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with Origins("10.77.0.1") as origin, diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        beat(backend)
        backend.stall()
        told = agent(CONNECT_LOCAL.format(port=origin.port))
        assert told == ({"answer": "origin"} if on_failure is OnFailure.OPEN else {"error": "ECONNREFUSED"})
        (missed,) = backend.missed()
        assert (missed.reason, missed.denied) == (Reason.GATE_STALLED, on_failure is OnFailure.CLOSED)
        assert (missed.remote.port, missed.uid) == (origin.port, 0)
        assert sandbox.nobody_came()
        assert agent(QUIC_V4) == ({"answer": None} if on_failure is OnFailure.OPEN else {"error": "EPERM"})
        beat(backend)
        assert agent(f"s = connected({V4})") == {"answer": None}
        assert accepted(sandbox, backend)[0] is not None
        assert backend.diverted == 1


@pytest.mark.parametrize("on_failure", OnFailure)
def test_ipv6_without_a_listener_follows_on_failure(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with (
        Origins("fd77::1", socket.AF_INET6) as origin,
        diverting(sandbox, on_failure, port_v6=None) as backend,
    ):
        beat(backend)
        code = f"s = connected(socket.AF_INET6, ('fd77::1', {origin.port})); answer = s.recv(99).decode()"
        told = sandbox.agent()(code)
        assert told == ({"answer": "origin"} if on_failure is OnFailure.OPEN else {"error": "ECONNREFUSED"})
        assert [one.reason for one in backend.missed()] == [Reason.NO_IPV6_LISTENER]


@pytest.mark.parametrize("on_failure", OnFailure)
def test_link_local_destinations_follow_on_failure(sandbox: Sandbox, on_failure: OnFailure) -> None:
    subprocess.run(["ip", "addr", "add", "fe80::77/64", "dev", "va", "nodad"], check=True)
    with Origins("::", socket.AF_INET6) as origin, diverting(sandbox, on_failure) as backend:
        beat(backend)
        index = socket.if_nametoindex("va")
        code = f"s = connected(socket.AF_INET6, ('fe80::77', {origin.port}, 0, {index})); answer = s.recv(99).decode()"
        told = sandbox.agent()(code)
        assert told == ({"answer": "origin"} if on_failure is OnFailure.OPEN else {"error": "ECONNREFUSED"})
        assert [one.reason for one in backend.missed()] == [Reason.LINK_LOCAL]


def test_what_conntrack_does_not_track_is_refused_when_closed(sandbox: Sandbox) -> None:
    """Somebody else's rules may exempt packets from conntrack, and then nothing can redirect them."""
    notrack = "table inet other { chain raw { type filter hook output priority raw; tcp dport 443 notrack; }; }\n"
    with diverting(sandbox, OnFailure.CLOSED) as backend:
        nft.load(notrack)
        beat(backend)
        assert sandbox.agent()(f"connected({V4})") == {"error": "ECONNREFUSED"}
        assert [one.reason for one in backend.missed()] == [Reason.NO_MEMORY]
        nft.load("delete table inet other\n")


def test_who_is_not_in_the_cgroup_is_untouched(sandbox: Sandbox) -> None:
    with Origins("10.77.0.1") as origin, diverting(sandbox, OnFailure.CLOSED) as backend:
        outside = sandbox.agent(inside=False)
        beat(backend)
        assert outside(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}
        assert outside(QUIC_V4) == {"answer": None}
        backend.stall()
        assert outside(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}
        assert outside(f"s = connected(socket.AF_INET, ('127.0.0.1', {sandbox.port_v4}))") == {"answer": None}
        assert accepted(sandbox, backend) == (None, None), "it came by itself, so it has no origin"
        assert (backend.diverted, backend.missed(), backend.lost()) == (0, [], {})


def test_two_sessions_side_by_side_have_each_their_own(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        other = Sandbox(held)
        with diverting(sandbox) as ours, diverting(other, OnFailure.CLOSED) as theirs:
            one, two = sandbox.agent(), other.agent()
            for backend in (ours, theirs):
                beat(backend)
            assert [agent(f"s = connected({V4})") for agent in (one, two)] == [{"answer": None}] * 2
            for box, backend, agent in ((sandbox, ours, one), (other, theirs, two)):
                _, owner = accepted(box, backend)
                assert owner is not None
                assert owner.pid == agent.pid
            one(QUIC_V4) and two(QUIC_V6)
            assert [len(backend.missed()) for backend in (ours, theirs)] == [1, 1], "each has a log of its own"
            ours.stall()
            assert two(f"s = connected({V4})") == {"answer": None}
            ours.close()
            assert two(f"s = connected({V4})") == {"answer": None}
            assert theirs.diverted == 3


# --- while it runs ----------------------------------------------------------------------------------------------------
def test_other_listeners_take_over(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend, socket.create_server(("127.0.0.1", 0)) as new:
        agent = sandbox.agent()
        agent(f"s = connected({V4})")
        backend.stall()
        for listener in (new, sandbox.listener_v4):
            listener.settimeout(5)
        backend.set_port(new.getsockname()[1], None)
        assert agent(f"t = connected({V4})") == {"answer": None}
        new.accept()[0].close()
        with sandbox.listener_v4.accept()[0] as old:
            agent("s.sendall(b'old')")
            assert old.recv(9) == b"old"
        assert backend.diverted == 2, "the counters go on"


@pytest.mark.parametrize("on_failure", OnFailure)
def test_rules_that_somebody_flushed_are_restored_by_the_next_beat(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        beat(backend)
        agent(f"s = connected({V4})")
        assert backend.diverted == 1
        nft.load("flush ruleset\n")
        assert backend.troubles() == []
        backend.stall()
        beat(backend)
        assert [one.what for one in backend.troubles()] == ["rules_restored"]
        assert backend.troubles() == []
        assert agent(f"t = connected({V4})") == {"answer": None}
        assert backend.diverted == 2


def test_a_beat_that_the_kernel_does_not_take_is_a_trouble_and_the_next_is_tried(sandbox: Sandbox) -> None:
    """The set is somebody else's by now, so that no protocol fits into it."""
    with diverting(sandbox) as backend:
        name = sandbox.cgroup.path.name
        wrong = "chain c { type filter hook output priority 0; }; set alive { type ipv4_addr; flags timeout; }"
        nft.load(f"flush ruleset\ntable inet {name} {{ {wrong}; }}\n")
        beat(backend)
        assert [one.what for one in backend.troubles()] == ["beat_not_taken"]
        nft.load("flush ruleset\n")
        beat(backend)
        assert [one.what for one in backend.troubles()] == ["rules_restored"]


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_socket_bound_to_a_device_gets_nowhere(sandbox: Sandbox, on_failure: OnFailure) -> None:
    """It cannot reach loopback. A limit, told in docs/redirect.md; at least nothing leaves under `closed`."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("vb", 0))
        wire.settimeout(0.2)
        with diverting(sandbox, on_failure) as backend:
            beat(backend)
            told = sandbox.agent()("""
                s = socket.socket(); s.settimeout(0.5)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'va'); s.connect(('203.0.113.9', 443))
            """)
            assert told == {"error": "timed out"}
            assert (sandbox.nobody_came(), backend.diverted) == (True, 1)
        assert "203.0.113.9" not in {socket.inet_ntoa(frame[30:34]) for frame in frames(wire)}


def frames(wire: socket.socket) -> Iterator[bytes]:
    """The IPv4 frames that have come out at the other end."""
    with contextlib.suppress(TimeoutError):
        while True:
            frame = wire.recv(4096)
            if frame[12:14] == b"\x08\x00":
                yield frame


def test_multipath_tcp_is_diverted(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        beat(backend)
        told = agent("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.settimeout(5); answer = 1")
        if "error" in told:
            pytest.skip("this kernel has no MPTCP")
        assert agent("s.connect(('203.0.113.9', 443)); answer = s.getpeername()") == {"answer": ["203.0.113.9", 443]}
        origin, owner = accepted(sandbox, backend)
        assert origin == Endpoint(address="203.0.113.9", port=443)
        assert owner is not None
        assert (owner.pid, owner.confidence) == (agent.pid, Confidence.TABLE)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_diverted_connection_outlives_detach_and_a_new_one_is_not_diverted(
    sandbox: Sandbox, on_failure: OnFailure
) -> None:
    with Origins("10.77.0.1") as origin, diverting(sandbox, on_failure) as backend:
        agent = sandbox.agent()
        beat(backend)
        agent(f"s = connected({V4})")
        with sandbox.listener_v4.accept()[0] as client:
            backend.detach()
            backend.detach()
            client.settimeout(5)
            agent("s.sendall(b'still here')")
            assert client.recv(99) == b"still here"
            client.sendall(b"and back")
            assert agent("answer = s.recv(99).decode()") == {"answer": "and back"}
        assert agent(CONNECT_LOCAL.format(port=origin.port).replace("s.", "t.").replace("s =", "t =")) == {
            "answer": "origin"
        }
        beat(backend)
        assert backend.diverted == 1


def test_the_counts_are_known_after_the_end(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        beat(backend)
        agent(f"s = connected({V4})")
        agent(QUIC_V4)
    assert (backend.diverted, backend.lost()) == (1, {Reason.QUIC_REFUSED: 1})
    backend.close()
    backend.detach()


def test_the_gate_gets_one_descriptor(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        assert backend.ground.kind is BackendKind.NFTABLES
        assert backend.ground.descriptors == (backend.watched[0].fd,)


def test_a_session_in_another_network_namespace_is_reached_through_its_descriptor(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        os.unshare(os.CLONE_NEWNET)  # where the supervisor is
        with diverting(sandbox, netns_fd=inside) as backend:
            assert ruleset() == ""
            beat(backend)
            assert agent(f"s = connected({V4})") == {"answer": None}
            _, owner = accepted(sandbox, backend)
            assert owner is not None
            assert owner.pid == agent.pid
            assert agent(QUIC_V4) == {"error": "EPERM"}
            assert [one.pid for one in backend.missed()] == [agent.pid]
    finally:
        os.setns(inside, os.CLONE_NEWNET)
        os.close(inside)


# --- what cannot be ---------------------------------------------------------------------------------------------------
def open_(box: Sandbox) -> Nftables:
    return Nftables.open(
        box.cgroup.path, port_v4=box.port_v4, port_v6=None, on_failure=OnFailure.OPEN, quic=Quic.REFUSE
    )


def test_a_table_that_is_there_is_not_taken_over(sandbox: Sandbox) -> None:
    with diverting(sandbox) as backend:
        before = len(descriptors())
        with pytest.raises(FileExistsError):
            open_(sandbox)
        assert len(descriptors()) == before
        beat(backend)
        assert sandbox.agent()(f"s = connected({V4})") == {"answer": None}


def test_a_kernel_without_the_socket_expression_is_told_with_a_remedy(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stood in for by a program that says what nft says there."""
    said = "/dev/stdin:9:1-2: Error: Could not process rule: No such file or directory"
    (tmp_path / "nft").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    before = len(descriptors())
    with monkeypatch.context() as patched:
        patched.setattr(nft.load, "__defaults__", (None, str(tmp_path)))
        with pytest.raises(BackendUnavailable, match="Could not process rule") as raised:
            open_(sandbox)
    assert "CONFIG_NFT_SOCKET" in raised.value.remedy
    assert len(descriptors()) == before


def test_a_cgroup_that_nft_cannot_find_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match="cannot find the cgroup"):
        nftables.nft_path(tmp_path / "gone")
    monkeypatch.setattr(nftables, "NFT_ROOT", tmp_path / "nowhere")
    with pytest.raises(BackendUnavailable):
        nftables.nft_path(tmp_path)


@pytest.mark.parametrize("where", ["namespace", "elsewhere", "part"])
def test_how_deep_the_cgroup_lies_need_not_be_known(sandbox: Sandbox, tmp_path: Path, where: str) -> None:
    part = sandbox.cgroup.path / "outer" / "inner"
    part.mkdir(parents=True)
    assert who_answers(part, where, tmp_path) == "gate"


def test_where_no_rule_can_name_the_cgroup_it_is_said(sandbox: Sandbox, tmp_path: Path) -> None:
    """Rules count from the root of the cgroup namespace, and the cgroup is not below it: nothing would be diverted."""
    part = sandbox.cgroup.path / "outer"
    part.mkdir()
    told = who_answers(part, "outside", tmp_path)
    assert told.startswith("no rule of nftables finds")
    assert "mount -t cgroup2" in told


def test_a_kernel_without_packet_log_counts_and_names_nobody(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(nftables, "PacketLog", unknown)
    with diverting(sandbox) as backend:
        agent = sandbox.agent()
        beat(backend)
        assert agent(QUIC_V4) == {"error": "EPERM"}
        assert backend.missed() == []
        assert backend.lost() == {Reason.QUIC_REFUSED: 1}
