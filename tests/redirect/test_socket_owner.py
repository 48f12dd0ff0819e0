"""Whose a socket is: real sockets of real processes, shared, passed on, closed and ended."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirect_sandbox import Agent

from mitmsec.core.model import Confidence, Endpoint, Process, Transport
from mitmsec_redirect import socket_owner
from mitmsec_redirect.backend import SocketOwner
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.socket_owner import SOURCE, SocketOwners, attributed, comm_of, started_ticks

CONNECT = "s = connected(socket.AF_INET, ('127.0.0.1', {port})); answer = s.getsockname()[1]"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    both = [Agent(None), Agent(None)]
    yield both
    for agent in both:
        agent.close()


def ends(listener: socket.socket, port: int) -> tuple[Endpoint, Endpoint]:
    return Endpoint(address="127.0.0.1", port=port), Endpoint.of(*listener.getsockname())


def test_the_one_process_that_has_it_is_found(listener: socket.socket, agents: list[Agent]) -> None:
    owners = SocketOwners(lambda: [agent.pid for agent in agents])
    for agent in (*agents, *agents):
        port = agent(CONNECT.format(port=listener.getsockname()[1]))["answer"]
        owner = owners.owner(*ends(listener, port))
        assert owner == SocketOwner(
            SOURCE, Confidence.TABLE, pid=agent.pid, uid=os.getuid(), comm="python", started_ticks=owner.started_ticks
        ) or owner.comm.startswith("python")
        assert (owner.pid, owner.confidence) == (agent.pid, Confidence.TABLE)
        assert owner.started_ticks == started_ticks(agent.pid)
    owners.close()
    owners.close()


def test_a_datagram_socket_is_found_by_where_it_sends(agents: list[Agent]) -> None:
    agent = agents[0]
    code = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('127.0.0.1', 9)); answer = 0"
    agent(code)
    port = agent("answer = u.getsockname()[1]")["answer"]
    owners = SocketOwners(lambda: [agent.pid])
    local, remote = Endpoint(address="127.0.0.1", port=port), Endpoint(address="127.0.0.1", port=9)
    assert owners.owner(local, remote, Transport.UDP).pid == agent.pid
    assert owners.owner(local, remote, Transport.TCP).confidence is Confidence.UNKNOWN
    owners.close()


def test_of_several_that_have_it_the_oldest_is_inferred(listener: socket.socket, agents: list[Agent]) -> None:
    agent = agents[0]
    port = agent(CONNECT.format(port=listener.getsockname()[1]))["answer"]
    time.sleep(0.02)  # start times are told in hundredths of a second
    child = agent("""
        answer = os.fork()
        if not answer:
            import time
            time.sleep(60)
    """)["answer"]
    try:
        owners = SocketOwners(lambda: [child, agent.pid])
        owner = owners.owner(*ends(listener, port))
        assert (owner.pid, owner.confidence) == (agent.pid, Confidence.INFERRED)
        agent("s.close()")
        heir = owners.owner(*ends(listener, port))
        assert (heir.pid, heir.confidence) == (child, Confidence.TABLE)
        owners.close()
    finally:
        agent(f"os.kill({child}, 9); os.waitpid({child}, 0)")


def test_a_socket_that_was_closed_is_nobodys_but_its_users(listener: socket.socket, agents: list[Agent]) -> None:
    agent = agents[0]
    port = agent(CONNECT.format(port=listener.getsockname()[1]))["answer"]
    with listener.accept()[0]:
        agent("s.close()")
        owners = SocketOwners(lambda: [agent.pid])
        owner = owners.owner(*ends(listener, port))
        assert owner == SocketOwner(SOURCE, Confidence.UNKNOWN, uid=os.getuid())
    assert owners.owner(*ends(listener, 1)) == SocketOwner(SOURCE, Confidence.UNKNOWN)
    owners.close()


def test_who_is_not_among_the_processes_looked_at_is_not_found(listener: socket.socket, agents: list[Agent]) -> None:
    port = agents[0](CONNECT.format(port=listener.getsockname()[1]))["answer"]
    owners = SocketOwners(lambda: [agents[1].pid, 2**22 + 1])
    assert owners.owner(*ends(listener, port)) == SocketOwner(SOURCE, Confidence.UNKNOWN, uid=os.getuid())
    owners.close()


def test_when_time_runs_out_what_was_found_is_inferred(listener: socket.socket, agents: list[Agent]) -> None:
    clock = iter([0.0, 0.001, 1.0])
    owners = SocketOwners(lambda: [agent.pid for agent in agents], clock=lambda: next(clock))
    port = agents[0](CONNECT.format(port=listener.getsockname()[1]))["answer"]
    owner = owners.owner(*ends(listener, port))
    assert (owner.pid, owner.confidence) == (agents[0].pid, Confidence.INFERRED)
    clock = iter([0.0, 1.0])
    assert owners.owner(*ends(listener, port)).pid == 0
    owners.close()


def test_a_process_with_thousands_of_descriptors_costs_no_more_than_the_budget(
    listener: socket.socket, agents: list[Agent]
) -> None:
    many, holder = agents
    told = many("""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        kept = [os.dup(0) for _ in range(min(20_000, hard - 50))]
        answer = len(kept)
    """)
    assert told["answer"] > 3000
    port = holder(CONNECT.format(port=listener.getsockname()[1]))["answer"]
    owners = SocketOwners(lambda: [many.pid, holder.pid])
    before = time.thread_time()
    assert owners.owner(*ends(listener, port)).confidence is Confidence.UNKNOWN
    assert time.thread_time() - before < socket_owner.SCAN_S + 0.01, "and what is between two looks at the clock"
    owners.close()


# --- told to others ---------------------------------------------------------------------------------------------------
def owner_of(agent: Agent, confidence: Confidence = Confidence.TABLE, **more: object) -> SocketOwner:
    known = {"pid": agent.pid, "uid": os.getuid(), "comm": "me", "started_ticks": started_ticks(agent.pid) or 0}
    return SocketOwner(SOURCE, confidence, **(known | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [Confidence.INFERRED, Confidence.TABLE, Confidence.KERNEL])
def test_a_process_is_told_with_no_more_confidence_than_its_socket(agents: list[Agent], confidence: Confidence) -> None:
    table = ProcessTable()
    process = attributed(owner_of(agents[0], confidence), table).process
    assert (process.pid, process.source, process.confidence) == (agents[0].pid, SOURCE, confidence)
    assert process.exe == os.readlink(f"/proc/{agents[0].pid}/exe")
    table.close()


def test_what_is_unknown_stays_unknown() -> None:
    table = ProcessTable()
    nobody = attributed(SocketOwner(SOURCE, Confidence.UNKNOWN, uid=0), table).process
    assert nobody == Process(pid=0, user="root", uid=0, source=SOURCE, confidence=Confidence.UNKNOWN)
    assert attributed(SocketOwner(SOURCE, Confidence.UNKNOWN), table).process.user is None
    table.close()


def test_a_pid_that_is_another_process_by_now_names_only_what_was_seen(agents: list[Agent]) -> None:
    table = ProcessTable()
    process = attributed(owner_of(agents[0], started_ticks=1), table).process
    assert (process.pid, process.name, process.exe) == (agents[0].pid, "me", None)
    assert process.confidence is Confidence.INFERRED
    table.close()


def test_who_connected_before_the_process_began_is_not_it(agents: list[Agent]) -> None:
    table = ProcessTable()
    process = attributed(owner_of(agents[0], Confidence.KERNEL), table, at_ns=1).process
    assert (process.exe, process.confidence) == (None, Confidence.INFERRED)
    table.close()


def test_what_proc_does_not_say_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert (started_ticks(7, str(tmp_path)), comm_of(7, str(tmp_path))) == (None, "")
    (tmp_path / "7" / "stat").write_bytes(b"7 (a) b) S 1")
    assert started_ticks(7, str(tmp_path)) is None
    assert comm_of(os.getpid()) == Path("/proc/self/comm").read_text().strip()
