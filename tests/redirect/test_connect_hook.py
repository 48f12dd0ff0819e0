"""The hook against real sockets of real programs, in a network namespace of each test's own."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from redirect_sandbox import MAPPED, V4, V6, Sandbox, stall

from mitmsec.core.model import Endpoint, OnFailure
from mitmsec_redirect.origins import OriginTable
from mitmsec_redirect.records import Reason

pytestmark = pytest.mark.root


def test_an_ipv4_connection_goes_to_the_gate_with_origin_and_owner(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent(f"s = connected({V4}); answer = [s.getpeername(), s.getsockname()[0]]")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.remote == Endpoint(address="203.0.113.9", port=443)
    assert (origin.pid, origin.uid, origin.bound, origin.source) == (agent.pid, 0, None, "10.77.0.1")
    assert origin.comm == Path(f"/proc/{agent.pid}/comm").read_text().strip()
    assert origin.connected_ns <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert told == {"answer": [["203.0.113.9", 443], "10.77.0.1"]}
    assert hook.diverted == 1
    assert hook.missed() == []


def test_an_ipv6_connection_goes_to_the_ipv6_listener(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent(f"s = connected({V6}); answer = [s.getpeername()[:2], s.getsockname()[0]]")
    origin = sandbox.accept(hook, v6=True)
    assert origin is not None
    assert (origin.remote, origin.source) == (Endpoint(address="2001:db8::9", port=443), "fd77::1")
    assert told == {"answer": [["2001:db8::9", 443], "fd77::1"]}


def test_a_v4_mapped_connection_goes_to_the_ipv4_listener(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent(f"s = connected({MAPPED}); answer = [s.getpeername()[:2], s.getsockname()[0]]")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.remote == Endpoint(address="203.0.113.9", port=443)
    assert told == {"answer": [["::ffff:203.0.113.9", 443], "::ffff:10.77.0.1"]}


@pytest.mark.parametrize(
    ("family", "bind", "to", "bound", "name"),
    [
        ("AF_INET", "('10.77.0.1', 40001)", "('203.0.113.9', 80)", "10.77.0.1", "10.77.0.1"),
        ("AF_INET", "('0.0.0.0', 40001)", "('203.0.113.9', 80)", "0.0.0.0", "10.77.0.1"),
        ("AF_INET6", "('fd77::1', 40001)", "('2001:db8::9', 80)", "fd77::1", "fd77::1"),
        ("AF_INET6", "('::', 40001)", "('2001:db8::9', 80)", "::", "fd77::1"),
        ("AF_INET6", "('::ffff:10.77.0.1', 40001)", "('::ffff:203.0.113.9', 80)", "10.77.0.1", "::ffff:10.77.0.1"),
    ],
)
def test_a_bound_socket_is_diverted_and_keeps_its_name(
    sandbox: Sandbox, family: str, bind: str, to: str, bound: str, name: str
) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(f"s = socket.socket(socket.{family}); s.settimeout(5); s.bind({bind}); s.connect({to})")
    told = agent("answer = s.getsockname()[:2]")
    assert told == {"answer": [name, 40001]}
    origin = sandbox.accept(hook, v6="2001" in to)
    assert origin is not None
    assert origin.bound == Endpoint(address=bound, port=40001)


def test_a_socket_bound_to_an_address_only_gets_its_port_from_the_kernel(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent("""
        s = socket.socket(); s.settimeout(5)
        s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        s.bind(('10.77.0.1', 0)); s.connect(('203.0.113.9', 80)); answer = s.getsockname()[0]
    """)
    origin = sandbox.accept(hook)
    assert told == {"answer": "10.77.0.1"}
    assert origin is not None
    assert origin.bound == Endpoint(address="10.77.0.1", port=0)


def test_a_non_blocking_connect_and_sendmsg_with_fast_open_are_diverted(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent("""
        import select
        s = socket.socket(); s.setblocking(False)
        answer = [s.connect_ex(('203.0.113.9', 80)) in (0, errno.EINPROGRESS)]
        select.select([], [s], [], 5); answer += [s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.getpeername()]
        t = socket.socket()
        t.sendto(b'hello', socket.MSG_FASTOPEN, ('203.0.113.8', 80)); answer.append(t.getpeername())
    """)
    assert told == {"answer": [True, 0, ["203.0.113.9", 80], ["203.0.113.8", 80]]}
    first, second = sandbox.accept(hook), sandbox.accept(hook)
    assert first is not None
    assert second is not None
    assert [first.remote.address, second.remote.address] == ["203.0.113.9", "203.0.113.8"]


def test_children_are_diverted_under_their_own_pid(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    agent.start(f"""
        child = os.fork()
        if not child:
            s = connected({V4}); s.recv(1); os._exit(0)
        answer = child
    """)
    child = agent.finish()["answer"]
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.pid == child != agent.pid


def test_loopback_destinations_are_real_origins(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    told = agent("""
        a = connected(socket.AF_INET, ('127.0.0.1', 8000)); b = connected(socket.AF_INET, ('0.0.0.0', 8001))
        c = connected(socket.AF_INET6, ('::1', 8002)); d = connected(socket.AF_INET6, ('::', 8003))
        answer = [x.getpeername()[:2] for x in (a, b, c, d)]
    """)
    assert told == {"answer": [["127.0.0.1", 8000], ["127.0.0.1", 8001], ["::1", 8002], ["::1", 8003]]}
    origins = [sandbox.accept(hook, v6=v6) for v6 in (False, False, True, True)]
    assert [str(origin.remote) for origin in origins if origin] == [
        "127.0.0.1:8000",
        "127.0.0.1:8001",
        "[::1]:8002",
        "[::1]:8003",
    ]


@pytest.mark.parametrize("on_failure", OnFailure)
def test_the_gates_own_listeners_are_no_destination(sandbox: Sandbox, on_failure: OnFailure) -> None:
    hook, agent = sandbox.hook(on_failure), sandbox.agent()
    for family, to in (
        ("AF_INET", f"('127.0.0.1', {sandbox.port_v4})"),
        ("AF_INET", f"('0.0.0.0', {sandbox.port_v4})"),
        ("AF_INET6", f"('::ffff:127.0.0.1', {sandbox.port_v4})"),
        ("AF_INET6", f"('::1', {sandbox.port_v6})"),
    ):
        assert agent(f"connected(socket.{family}, {to})") == {"error": "EPERM"}
    assert {(one.reason, one.denied) for one in hook.missed()} == {(Reason.OWN_LISTENER, True)}
    assert sandbox.nobody_came()


def test_names_stay_true_for_the_sockets_life_and_no_longer(sandbox: Sandbox) -> None:
    """The origins map forgets; the socket does not. Disconnecting it ends the story."""
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(f"s = connected({V4})")
    accepted, _ = sandbox.listener_v4.accept()
    cookie = sandbox.cookies.cookie_of(
        Endpoint.of(*accepted.getpeername()), Endpoint(address="127.0.0.1", port=sandbox.port_v4)
    )
    assert cookie is not None
    table = OriginTable(hook.origins_fd)
    assert table.take(cookie) is not None
    assert table.take(cookie) is None
    assert agent("answer = s.getpeername()") == {"answer": ["203.0.113.9", 443]}
    disconnect = "import ctypes; ctypes.CDLL(None).connect(s.fileno(), b'\\0' * 16, 16); answer = s.getsockname()[0]"
    assert agent(disconnect) == {"answer": "0.0.0.0"}
    accepted.close()


def test_a_socket_that_was_diverted_once_tells_the_truth_when_it_is_let_go(sandbox: Sandbox) -> None:
    with socket.create_server(("10.77.0.1", 0)) as server:
        port = server.getsockname()[1]
        hook, agent = sandbox.hook(), sandbox.agent()
        agent(f"s = connected({V4})")
        assert sandbox.accept(hook) is not None
        stall(hook)
        told = agent(f"""
            import ctypes; ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)
            s.connect(('10.77.0.1', {port})); answer = s.getpeername()
        """)
    assert told == {"answer": ["10.77.0.1", port]}
