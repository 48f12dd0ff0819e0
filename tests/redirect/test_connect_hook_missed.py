"""What the hook does not divert, and which way that goes."""

from __future__ import annotations

import mmap
import select
import socket
import time

import pytest
from redirect_sandbox import CONNECT_LOCAL, V4, Origins, Sandbox, beat, follow, stall

from mitmsec.core.model import Endpoint, OnFailure, Quic, Transport
from mitmsec_redirect import connect_hook, netns, records
from mitmsec_redirect.bpf import Attach
from mitmsec_redirect.records import Reason
from mitmsec_redirect.ringbuffer import HEADER

pytestmark = pytest.mark.root


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_stalled_gate(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with Origins("10.77.0.1") as origin:
        hook = sandbox.hook(on_failure)
        stall(hook)
        missed = follow(sandbox, hook, on_failure, CONNECT_LOCAL.format(port=origin.port))
        assert (missed.reason, missed.transport) == (Reason.GATE_STALLED, Transport.TCP)
        assert missed.remote == Endpoint(address="10.77.0.1", port=origin.port)
        beat(hook)
        sandbox.agent()("s = connected(socket.AF_INET, ('203.0.113.9', 443))")
        assert sandbox.accept(hook) is not None, "a beat later it is diverted again"


def test_a_beat_of_the_future_counts_as_none(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(OnFailure.CLOSED), sandbox.agent()
    future = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 10**12
    hook._maps["heartbeat"].update(records.INDEX.pack(0), records.HEARTBEAT.pack(future))
    assert agent(f"connected({V4})") == {"error": "EPERM"}


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_socket_bound_to_a_device(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with Origins("127.0.0.1") as origin:
        code = f"""
            s = socket.socket(); s.settimeout(5); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')
            s.connect(('127.0.0.1', {origin.port})); answer = s.recv(99).decode()
        """
        assert follow(sandbox, sandbox.hook(on_failure), on_failure, code).reason is Reason.DEVICE_BOUND


@pytest.mark.parametrize("on_failure", OnFailure)
def test_another_network_namespace(sandbox: Sandbox, on_failure: OnFailure) -> None:
    """127.0.0.1 with the gate's port is somebody else's there."""
    code = """
        import subprocess
        os.unshare(os.CLONE_NEWNET); subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
        l = socket.create_server(('127.0.0.1', 0)); s = connected(socket.AF_INET, l.getsockname())
        l.accept()[0].sendall(b'origin'); answer = s.recv(99).decode()
    """
    missed = follow(sandbox, sandbox.hook(on_failure), on_failure, code)
    assert missed.reason is Reason.OTHER_NETWORK_NAMESPACE
    assert missed.netns != netns.current_cookie()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_no_ipv6_listener(sandbox: Sandbox, on_failure: OnFailure) -> None:
    with Origins("fd77::1", socket.AF_INET6) as origin:
        code = f"s = connected(socket.AF_INET6, ('fd77::1', {origin.port})); answer = s.recv(99).decode()"
        missed = follow(sandbox, sandbox.hook(on_failure, v6=False), on_failure, code)
        assert missed.reason is Reason.NO_IPV6_LISTENER


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_link_local_destination(sandbox: Sandbox, on_failure: OnFailure) -> None:
    hook, agent = sandbox.hook(on_failure), sandbox.agent()
    told = agent("""
        s = socket.socket(socket.AF_INET6); s.setblocking(False)
        s.connect(('fe80::9', 4, 0, socket.if_nametoindex('va')))
    """)
    assert told == {"error": "EINPROGRESS" if on_failure is OnFailure.OPEN else "EPERM"}
    assert [one.reason for one in hook.missed()] == [Reason.LINK_LOCAL]


@pytest.mark.parametrize("on_failure", OnFailure)
def test_mptcp_is_no_way_round_the_gate(sandbox: Sandbox, on_failure: OnFailure) -> None:
    """Whether the kernel shows the hook the MPTCP socket or its first subflow: it does not go out unseen."""
    hook, agent = sandbox.hook(on_failure), sandbox.agent()
    told = agent("""
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.setblocking(False)
        answer = errno.errorcode.get(s.connect_ex(('203.0.113.9', 443)), 'connected')
    """)
    if told.get("error") in ("EPROTONOSUPPORT", "ENOPROTOOPT"):
        pytest.skip("no MPTCP here")
    assert hook.diverted + len(hook.missed()) == 1


@pytest.mark.parametrize("on_failure", OnFailure)
def test_quic_is_refused_and_other_udp_is_untouched(sandbox: Sandbox, on_failure: OnFailure) -> None:
    hook, agent = sandbox.hook(on_failure), sandbox.agent()
    udp = "s = socket.socket({}, socket.SOCK_DGRAM); "
    assert agent(udp.format("socket.AF_INET") + "s.connect(('203.0.113.9', 443))") == {"error": "EPERM"}
    assert agent(udp.format("socket.AF_INET6") + "s.connect(('2001:db8::9', 443))") == {"error": "EPERM"}
    assert agent(udp.format("socket.AF_INET6") + "s.connect(('::ffff:203.0.113.9', 443))") == {"error": "EPERM"}
    assert agent(udp.format("socket.AF_INET") + "s.sendto(b'x', ('203.0.113.9', 443))") == {"error": "EPERM"}
    assert agent(udp.format("socket.AF_INET6") + "s.sendto(b'x', ('2001:db8::9', 443))") == {"error": "EPERM"}
    missed = hook.missed()
    assert {(one.reason, one.transport, one.denied) for one in missed} == {(Reason.QUIC_REFUSED, Transport.UDP, True)}
    assert [one.remote.address for one in missed] == [
        "203.0.113.9",
        "2001:db8::9",
        "203.0.113.9",
        "203.0.113.9",
        "2001:db8::9",
    ]
    others = "s.connect(('203.0.113.9', 53)); s.send(b'x'); t = socket.socket(2, 2); t.sendto(b'x', ('10.77.0.1', 53))"
    assert agent(udp.format("socket.AF_INET") + others) == {"answer": None}
    assert hook.missed() == []


def test_quic_passes_where_the_policy_says_so(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(quic=Quic.BYPASS), sandbox.agent()
    code = "s = socket.socket(2, 2); s.connect(('203.0.113.9', 443)); s.send(b'x'); t = socket.socket(2, 2)"
    assert agent(code + "; t.sendto(b'x', ('203.0.113.9', 443))") == {"answer": None}
    assert hook.missed() == []
    assert Attach.SENDMSG4 not in hook.run_counts()


def test_a_full_ring_is_counted(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, _, _, flags = connect_hook.MAPS["missed"]
    monkeypatch.setattr(connect_hook, "MAPS", {**connect_hook.MAPS, "missed": (kind, 0, 0, mmap.PAGESIZE, flags)})
    room = mmap.PAGESIZE // (HEADER.size + records.ATTEMPT.size)
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(f"for n in range({room + 3}): socket.socket(2, 2).connect_ex(('203.0.113.9', 443))")
    assert len(hook.missed()) == room
    assert hook.lost() == {Reason.QUIC_REFUSED: 3}


def test_that_there_is_something_to_tell_can_be_waited_for(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    assert not select.select([hook.missed_fd], [], [], 0)[0]
    agent("socket.socket(2, 2).connect_ex(('203.0.113.9', 443))")
    assert select.select([hook.missed_fd], [], [], 5)[0]
    assert len(hook.missed()) == 1
    assert not select.select([hook.missed_fd], [], [], 0)[0]
