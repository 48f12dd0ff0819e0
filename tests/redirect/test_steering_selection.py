"""Under a standing selection only listeners of selected programs are led to the gate; others are touched by nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirect_sandbox import Agent, Sandbox
from steering_stage import Stage, Standing

from mitmsec.core.model import OnFailure
from mitmsec_redirect import bpf, bpffs, steering
from mitmsec_redirect.bpf import Attach
from mitmsec_redirect.connect_hook import reap
from mitmsec_redirect.inbound_records import InboundKind, listener
from mitmsec_redirect.open_listeners import OpenListener, open_listeners
from mitmsec_redirect.steering_records import Steered
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root
SERVE = "l = socket.create_server(('127.0.0.1', {port})); answer = l.getsockname()[1]"
STAYS = "made = [socket.create_server(('127.0.0.1', 0)) for _ in range({count})]"
COMES_AND_GOES = "for n in range({count}): socket.create_server(('127.0.1.%d' % n, 7000)).close()"
ANSWER = "c, peer = l.accept(); answer = list(peer); c.close()"


class Selected(Stage):
    """One on which only those listeners are led whose processes are selected."""

    def __init__(self, box: Sandbox, held: contextlib.ExitStack, *, everything: bool = False, **terms: object) -> None:
        self.standing = Standing()
        held.callback(self.standing.close)
        selection = self.standing.selection(everything=everything)
        super().__init__(box, held, selection=selection, **terms)  # type: ignore[arg-type]

    def program(self, verdict: Verdict = Verdict.SELECTED) -> Agent:
        agent = self.box.agent()
        self.beat()  # it takes a while to start; no gate has stalled for that
        if verdict:
            self.standing.judge(agent.pid, verdict)
        return agent

    def adopt(self, agent: Agent, port: int) -> OpenListener:
        """As user space finds a listener that nobody saw begin."""
        (one,) = [one for one in open_listeners() if one.port == port]
        assert self.steering.keep(record(one, agent.pid, self.steering.namespace))
        return one

    def is_led(self, port: int) -> bool:
        self.beat()
        with socket.create_connection(("127.0.0.1", port), 5):
            return not self.box.nobody_came()


def record(one: OpenListener, pid: int, namespace: int, *, by_selected: bool = True) -> bytes:
    return listener(
        cookie=one.cookie,
        netns=namespace,
        at_ns=time.monotonic_ns(),
        local=one.local,
        port=one.port,
        also_v4=one.also_v4,
        pid=pid,
        uid=0,
        comm="python3",
        by_selected=by_selected,
    )


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Selected]:
    with contextlib.ExitStack() as held:
        yield Selected(sandbox, held)


def serve(agent: Agent, port: int = 0) -> int:
    answer: int = agent(SERVE.format(port=port))["answer"]
    return answer


def test_who_is_selected_is_led_and_nobody_else(stage: Selected) -> None:
    selected, other = stage.program(), stage.program(Verdict(0))
    ours, theirs = serve(selected), serve(other)
    assert stage.is_led(ours)
    with socket.create_connection(("127.0.0.1", theirs), 5) as client:
        assert other(ANSWER)["answer"] == list(client.getsockname()), "from its peer itself"
    assert stage.box.nobody_came()
    (kept,) = stage.steering.kept()
    assert (kept.pid, kept.by_selected, kept.kind) == (selected.pid, True, InboundKind.LISTENS)
    assert [one.pid for one in stage.hook.drain()] == [selected.pid], "nothing of others is told"


def test_of_who_is_not_selected_nothing_is_kept(stage: Selected) -> None:
    other = stage.program(Verdict(0))
    serve(other)
    other("l.close()")
    assert (stage.steering.kept(), stage.counts(), stage.hook.drain()) == ([], [], [])


def test_who_is_undecided_is_led_until_somebody_says_otherwise(stage: Selected) -> None:
    agent = stage.program(Verdict.UNDECIDED)
    port = serve(agent)
    (kept,) = stage.steering.kept()
    assert not kept.by_selected
    assert stage.is_led(port)
    assert stage.steering.forget(kept.cookie)
    assert not stage.steering.forget(kept.cookie)
    assert not stage.is_led(port)
    agent("l.close()")
    assert stage.counts() == [0]


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 4 listeners and 64 places; of these the undecided have 2 and 8."""
    for name, limit in (("listeners", 4), ("served", 64), ("undecided", 2), ("undecided_at", 8)):
        shape = steering.MAPS[name]
        monkeypatch.setitem(steering.MAPS, name, (*shape[:3], limit))  # type: ignore[arg-type]


@pytest.mark.usefixtures("little_room")
def test_who_stays_undecided_takes_no_room_from_who_is_selected(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        stage.program(Verdict.UNDECIDED)(COMES_AND_GOES.format(count=100))
        stage.program(Verdict.UNDECIDED)(STAYS.format(count=5))
        assert stage.steering.missed() == {Steered.NO_ROOM_UNDECIDED: 92 + 5}, "neither has a place any more"
        selected = stage.program()
        assert stage.is_led(serve(selected))
        assert stage.steering.missed() == {}


@pytest.mark.usefixtures("little_room")
def test_who_stays_undecided_has_few_listeners_at_once(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        agent = stage.program(Verdict.UNDECIDED)
        agent(STAYS.format(count=5))
        assert (len(stage.steering.kept()), stage.steering.missed()) == (2, {Steered.NO_ROOM_UNDECIDED: 3})
        agent("for one in made: one.close()")
        agent(STAYS.format(count=2))
        assert (len(stage.steering.kept()), stage.steering.missed()) == (2, {}), "what they have ended is free again"


@pytest.mark.usefixtures("little_room")
def test_who_turns_out_to_be_selected_takes_nothing_of_the_others_share(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        for _ in range(2):
            stage.program(Verdict.UNDECIDED)(STAYS.format(count=2))
            for one in stage.steering.kept():
                stage.steering.decided(one.cookie)
        assert (len(stage.steering.kept()), stage.steering.missed()) == (4, {})


@pytest.mark.usefixtures("little_room")
def test_selected_listeners_without_room_are_counted_whoever_finds_them(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    port = serve(agent)
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        stage.program()(STAYS.format(count=5))
        assert stage.steering.missed() == {Steered.NO_ROOM: 1}
        (one,) = [one for one in open_listeners() if one.port == port]
        assert not stage.steering.keep(record(one, agent.pid, stage.steering.namespace))
        assert stage.steering.missed() == {Steered.NO_ROOM: 1}
        assert not stage.is_led(port)


@pytest.mark.usefixtures("little_room")
def test_undecided_listeners_that_are_found_have_the_same_share(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    ports = agent(STAYS.format(count=3) + "; answer = [one.getsockname()[1] for one in made]")["answer"]
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        found = [one for one in open_listeners() if one.port in ports]
        undecided = [record(one, agent.pid, stage.steering.namespace, by_selected=False) for one in found]
        assert [stage.steering.keep(one) for one in undecided] == [True, True, False]
        assert stage.steering.missed() == {Steered.NO_ROOM_UNDECIDED: 1}
        agent("for one in made: one.close()")
        stage.program(Verdict.UNDECIDED)(STAYS.format(count=2))
        assert (len(stage.steering.kept()), stage.steering.missed()) == (2, {})


@pytest.mark.parametrize("verdict", [Verdict.OWN_TRAFFIC | Verdict.INHERITS, Verdict.OWN_TRAFFIC | Verdict.SELECTED])
def test_our_own_listeners_are_not_led_not_even_with_everything(sandbox: Sandbox, verdict: Verdict) -> None:
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held, everything=True)
        assert not stage.is_led(serve(stage.program(verdict)))
        assert stage.is_led(serve(stage.program(Verdict(0))))


def test_what_listens_in_a_run_is_the_runs(stage: Selected, sandbox: Sandbox) -> None:
    stage.standing.runs.update(struct.pack("=Q", os.stat(sandbox.cgroup.path).st_ino), struct.pack("=I", 1))
    assert not stage.is_led(serve(stage.program()))


def test_who_has_listened_before_is_led_until_its_last_close(sandbox: Sandbox) -> None:
    """An heir that ends is no end of it; whoever listens there afterwards is not led."""
    agent = sandbox.agent()
    port = serve(agent)
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        assert not stage.is_led(port)
        one = stage.adopt(agent, port)
        assert not stage.steering.keep(record(one, agent.pid, stage.steering.namespace)), "once only"
        assert stage.is_led(port)
        agent("pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)")
        assert stage.is_led(port)
        agent("l.close()")
        assert (stage.steering.kept(), stage.counts()) == ([], [0])
        assert serve(stage.program(Verdict(0)), port) == port
        assert not stage.is_led(port)


@pytest.mark.parametrize("v6only", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_who_listens_on_all_of_ipv6_is_led_on_ipv4_where_it_listens_there_too(
    sandbox: Sandbox, *, v6only: bool, before: bool
) -> None:
    """And somebody else's service on IPv4, at the same port, has its connections."""
    bound = f"l = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6={not v6only})"
    serves = f"{bound}; answer = l.getsockname()[1]"
    with contextlib.ExitStack() as held:
        agent = sandbox.agent()
        port = agent(serves)["answer"] if before else 0
        stage = Selected(sandbox, held)
        stage.standing.judge(agent.pid, Verdict.SELECTED)
        if before:
            stage.adopt(agent, port)
        else:
            port = agent(serves)["answer"]
        stage.beat()
        stage.call("::1", port)
        stage.led(v6=True)
        if v6only:
            other = sandbox.agent(inside=False)
            other(f"l = socket.create_server(('0.0.0.0', {port}))")
            with socket.create_connection(("10.77.0.1", port), 5) as client:
                assert other(ANSWER)["answer"] == list(client.getsockname()), "from its peer itself"
        else:
            stage.beat()
            stage.call("10.77.0.1", port)
            stage.led()
        agent("l.close()")
        assert (stage.steering.kept(), set(stage.counts())) == ([], {0})


def test_one_that_was_shut_before_it_was_closed_is_forgotten_too(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    port = serve(agent)
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        stage.adopt(agent, port)
        agent("l.shutdown(socket.SHUT_RDWR); l.close()")
        assert (stage.steering.kept(), stage.counts()) == ([], [0])


def test_its_leg_reaches_one_that_listened_before_and_shows_the_true_peer(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    port = serve(agent)
    with contextlib.ExitStack() as held:
        stage = Selected(sandbox, held)
        stage.standing.judge(agent.pid, Verdict.SELECTED)
        stage.adopt(agent, port)
        stage.beat()
        client = stage.call("127.0.0.1", port)
        leg = stage.leg(stage.led())
        assert leg.listener is not None
        assert (leg.listener.pid, leg.listener.by_selected, leg.listener.caller) == (agent.pid, True, None)
        with leg.connect():
            assert agent(ANSWER)["answer"] == list(client.getsockname())
        assert stage.hook.drain() == [], "the gate tells of it"


def test_without_steering_nobody_is_kept_and_with_it_again_they_are(stage: Selected) -> None:
    agent = stage.program()
    stage.hook.change(everything=False, steering=None)
    assert Attach.SOCK_RELEASE not in stage.hook.run_counts()
    serve(agent)
    assert stage.steering.kept() == []
    stage.hook.change(everything=False, steering=stage.steering.maps)
    port = serve(agent)
    assert [one.local.port for one in stage.steering.kept()] == [port]


def test_pinned_it_still_sees_who_listens_no_more(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whoever listens where a selected program did must not be refused for it, though nobody of ours lives."""
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    try:
        agent = sandbox.agent()
        port = serve(agent)
        with contextlib.ExitStack() as held:
            pins = folder / "service"
            pins.mkdir(mode=0o700)
            stage = Selected(sandbox, held, on_failure=OnFailure.CLOSED, pins=pins)
            stage.hook.change(everything=False, steering=stage.steering.maps, pin_folder=pins)
            stage.adopt(agent, port)
            stage.stall()
            stage.steering.close()
            stage.hook.close()
            with pytest.raises(ConnectionRefusedError):
                stage.call("127.0.0.1", port)
            agent("l.close()")
            serve(sandbox.agent(inside=False), port)
            stage.call("127.0.0.1", port)
            assert reap(pins) == 3
    finally:
        bpffs.unmount(folder)


def test_a_connection_of_others_runs_one_program_more_than_where_nobody_is_led(stage: Selected) -> None:
    other = stage.program(Verdict(0))
    port = serve(other)
    runs = []
    stats = bpf.enable_stats()
    try:
        for steering in (None, stage.steering.maps):
            stage.hook.change(everything=False, steering=steering)
            with socket.create_connection(("127.0.0.1", port), 5):
                other(ANSWER)
            runs.append({attach: count.runs for attach, count in stage.hook.run_counts().items()})
    finally:
        os.close(stats)
    without, led = runs
    assert led == without | {Attach.SOCK_RELEASE: 1}
