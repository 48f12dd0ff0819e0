"""What a session opens so that its gate has the connections that come in: all of it, or nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmsec.core.model import Action, OnFailure, Quic
from mitmsec.core.policy import Policy
from mitmsec.service.ground import listeners
from mitmsec.service.inward import InwardGround
from mitmsec_redirect import netns
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.replay import Replay

pytestmark = pytest.mark.root
BLOCKING = Policy(inbound=Action.BLOCK)


@pytest.fixture
def network() -> Iterator[int]:
    """A network namespace of its own, in which this thread is."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    yield here
    os.setns(before, os.CLONE_NEWNET)
    os.close(here)
    os.close(before)


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("test", f"inward-{os.getpid()}")
    yield made
    made.remove()


@pytest.fixture
def hook(network: int, cgroup: SessionCgroup) -> Iterator[ConnectHook]:
    with ConnectHook.open(
        cgroup.path,
        port_v4=1,
        port_v6=1,
        netns_cookies=[netns.current_cookie()],
        on_failure=OnFailure.OPEN,
        quic=Quic.REFUSE,
    ) as opened:
        yield opened


def test_a_policy_that_lets_all_pass_needs_nothing(network: int, hook: ConnectHook) -> None:
    assert InwardGround.open(Policy(), hook, network, None) is None


def test_no_other_backend_can_do_it(network: int) -> None:
    other = Replay((), port_v4=1, port_v6=None, on_failure=OnFailure.OPEN, quic=Quic.REFUSE)
    with pytest.raises(BackendUnavailable, match="only the connect hook") as refused:
        InwardGround.open(BLOCKING, other, network, None)
    assert "--backend connect_hook" in refused.value.remedy


def test_a_gate_is_given_two_maps_and_its_listeners(network: int, hook: ConnectHook) -> None:
    ground = InwardGround.open(BLOCKING, hook, network, None)
    assert ground is not None
    assert len(ground.descriptors) == 2 + ground.count
    for fd in ground.descriptors[2:]:
        with socket.socket(fileno=os.dup(fd)) as gate:
            assert gate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert netns.cookie_of(gate) == ground.maps.namespace
    ground.forget_legs()
    ground.detach()
    ground.close()


def test_what_found_no_gate_is_a_fault_once(network: int, hook: ConnectHook, cgroup: SessionCgroup) -> None:
    """The gate has never beaten: its first second is over."""
    ground = InwardGround.open(BLOCKING, hook, network, None)
    assert ground is not None
    told: list[Any] = []
    code = (
        f"import socket; open('{cgroup.path}/cgroup.procs', 'w').write('0');"
        "l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True); l.accept()"
    )
    with contextlib.ExitStack() as held:
        held.callback(ground.close)
        held.enter_context(InboundHook.open(cgroup.path, steering=ground.maps))
        command = ["python3", "-I", "-S", "-c", code]
        server = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert server.stdout is not None
        port = int(server.stdout.readline())
        hook.stall()
        socket.create_connection(("127.0.0.1", port)).close()
        for _ in range(2):
            ground.look(lambda *words, **counts: told.append((words, counts)))
    assert told == [(("gate_stalled", "connections that came in"), {"count": 1})]


def test_where_something_fails_nothing_is_left(network: int, hook: ConnectHook, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="pin"):
        InwardGround.open(BLOCKING, hook, network, tmp_path / "missing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_can_listen_on_all_addresses_at_the_port_of_a_gate(network: int) -> None:
    """What is called on a port that is served at all addresses is led: so a gate's own port must not be one."""
    gates = listeners()
    port = gates[0].getsockname()[1]
    assert [gate.getsockname()[:2] for gate in gates] == [("127.0.0.1", port), ("::1", port)]
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server((address, port), family=family)
    for gate in gates:
        gate.close()
