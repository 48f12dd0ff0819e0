"""A standing selection: the hook sees all, and diverts whom a map names. Real sockets of real programs."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator

import pytest
from redirect_sandbox import V4, V6, Agent, Sandbox, beat

from mitmsec_redirect.bpf import Map, MapKind, enable_stats
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import Verdict, entry

pytestmark = pytest.mark.root

REFUSED = "s = socket.socket(); s.connect(('10.77.0.1', 9))"  # nobody listens there
QUIC = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); answer = s.{}(b'x', ('203.0.113.9', 443))"


class Verdicts:
    """The map, and a hook that asks it."""

    def __init__(self, box: Sandbox, *, everything: bool = False) -> None:
        self.box = box
        self.map = Map.create(MapKind.HASH, 4, 8, 1024, "ms_selected")
        self.runs = RunCgroups()
        self.hook: ConnectHook = box.hook(selection=Selection(self.map.fd, self.runs.fd, everything=everything))

    def say(self, agent: Agent, verdict: Verdict) -> None:
        number = entry(time.clock_gettime_ns(time.CLOCK_MONOTONIC), verdict)
        self.map.update(struct.pack("=I", agent.pid), struct.pack("=Q", number))

    def withdraw(self, agent: Agent) -> None:
        self.map.delete(struct.pack("=I", agent.pid))

    def close(self) -> None:
        self.map.close()
        self.runs.close()

    def is_diverted(self, agent: Agent) -> bool:
        """Whether a connection to a closed port is answered by the gate."""
        told = agent(REFUSED)
        assert told in ({"answer": None}, {"error": "ECONNREFUSED"})
        diverted = told == {"answer": None}
        if diverted:
            assert self.box.accept(self.hook) is not None
        return diverted


@pytest.fixture
def verdicts(sandbox: Sandbox) -> Iterator[Verdicts]:
    made = Verdicts(sandbox)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def everything(sandbox: Sandbox) -> Iterator[Verdicts]:
    made = Verdicts(sandbox, everything=True)
    with contextlib.closing(made):
        yield made


def test_who_is_selected_is_diverted_and_who_is_not_never_notices(verdicts: Verdicts) -> None:
    chosen, other = verdicts.box.agent(), verdicts.box.agent()
    verdicts.say(chosen, Verdict.SELECTED)
    assert verdicts.is_diverted(chosen)
    assert not verdicts.is_diverted(other)
    assert verdicts.hook.diverted == 1
    assert verdicts.hook.missed() == []


def test_a_socket_made_before_its_process_was_selected_is_diverted_too(verdicts: Verdicts) -> None:
    agent = verdicts.box.agent()
    assert agent("s = socket.socket()") == {"answer": None}
    verdicts.say(agent, Verdict.SELECTED)
    assert agent("s.connect(('203.0.113.9', 80)); answer = s.getpeername()[0]") == {"answer": "203.0.113.9"}


def test_a_selection_ends_when_it_is_withdrawn(verdicts: Verdicts) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, Verdict.SELECTED)
    assert verdicts.is_diverted(agent)
    verdicts.withdraw(agent)
    assert not verdicts.is_diverted(agent)


def test_whom_nobody_has_judged_yet_is_diverted_so_that_no_first_connection_is_missed(verdicts: Verdicts) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, Verdict.UNDECIDED)
    assert verdicts.is_diverted(agent)


@pytest.mark.parametrize("also", [Verdict(0), Verdict.SELECTED, Verdict.UNDECIDED])
def test_own_traffic_is_never_diverted(verdicts: Verdicts, also: Verdict) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, Verdict.OWN_TRAFFIC | also)
    assert not verdicts.is_diverted(agent)


def test_everything_is_a_selection_and_own_traffic_is_still_no_part_of_it(everything: Verdicts) -> None:
    anybody, ours = everything.box.agent(), everything.box.agent()
    everything.say(ours, Verdict.OWN_TRAFFIC)
    assert everything.is_diverted(anybody)
    assert not everything.is_diverted(ours)
    everything.say(anybody, Verdict(0))
    assert everything.is_diverted(anybody)


@pytest.mark.parametrize("all_of_them", [False, True])
def test_what_a_run_diverts_is_not_diverted_again(sandbox: Sandbox, all_of_them: bool) -> None:
    made = Verdicts(sandbox, everything=all_of_them)
    agent = sandbox.agent()
    made.say(agent, Verdict.SELECTED)
    made.runs.are([sandbox.cgroup.path])
    assert not made.is_diverted(agent)
    made.runs.are([])
    assert made.is_diverted(agent)
    made.close()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_how_deep_the_cgroup_of_a_run_lies_need_not_be_known(verdicts: Verdicts, below: str) -> None:
    """In a cgroup namespace nobody can tell: what looks like the root there is not."""
    run = verdicts.box.cgroup.path / "outer" / "inner" / "run"
    (run / below).mkdir(parents=True)
    verdicts.runs.are([run])
    for folder, is_diverted in ((run / below, False), (run.parent, True)):
        with contextlib.closing(Agent(folder)) as agent:
            verdicts.say(agent, Verdict.SELECTED)
            beat(verdicts.hook)
            assert verdicts.is_diverted(agent) is is_diverted


def test_ipv6_asks_the_same_map(verdicts: Verdicts) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, Verdict.SELECTED)
    told = agent(f"s = connected({V6}); answer = s.getpeername()[0]")
    assert told == {"answer": "2001:db8::9"}
    assert verdicts.box.accept(verdicts.hook, v6=True) is not None


@pytest.mark.parametrize("call", ["sendto", "connect"])
def test_quic_is_refused_to_selected_programs_only(verdicts: Verdicts, call: str) -> None:
    code = QUIC.format("sendto") if call == "sendto" else QUIC.replace("(b'x', ", "(").format("connect")
    chosen, other = verdicts.box.agent(), verdicts.box.agent()
    verdicts.say(chosen, Verdict.SELECTED)
    assert chosen(code) == {"error": "EPERM"}
    assert "error" not in other(code)
    (missed,) = verdicts.hook.missed()
    assert missed.pid == chosen.pid


def test_a_thread_is_selected_with_its_process(verdicts: Verdicts) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, Verdict.SELECTED)
    code = f"""
        import threading
        names = []
        t = threading.Thread(target=lambda: names.append(connected({V4}).getpeername()[0]))
        t.start(); t.join(); answer = names
    """
    assert agent(code) == {"answer": ["203.0.113.9"]}
    origin = verdicts.box.accept(verdicts.hook)
    assert origin is not None
    assert origin.pid == agent.pid


def test_the_unselected_pay_one_look_up_for_each_connect(verdicts: Verdicts) -> None:
    """Told in docs/redirect.md: well below the microseconds that connect() itself takes."""
    agent = verdicts.box.agent()
    statistics = enable_stats()
    try:
        agent(
            "for n in range(2000):\n    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)\n"
            "    s.connect_ex(('10.77.0.1', 9)); s.close()"
        )
        runs = {attach.name: count for attach, count in verdicts.hook.run_counts().items()}
    finally:
        os.close(statistics)
    assert runs["CONNECT4"].runs == 2000
    assert verdicts.hook.diverted == 0


@pytest.mark.parametrize(("verdict", "selected"), [(Verdict.SELECTED, True), (Verdict.UNDECIDED, False)])
def test_the_origin_says_whether_its_caller_was_selected_whatever_becomes_of_it(
    verdicts: Verdicts, verdict: Verdict, selected: bool
) -> None:
    agent = verdicts.box.agent()
    verdicts.say(agent, verdict)
    assert agent(REFUSED) == {"answer": None}
    verdicts.withdraw(agent)  # as when it ends
    origin = verdicts.box.accept(verdicts.hook)
    assert origin is not None
    assert origin.selected is selected
