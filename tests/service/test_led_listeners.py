"""The service leads the listeners of who is selected now: those that it heard of, and those that were there before."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.core.model import OnFailure, Process
from mitmsec.service import led_listeners
from mitmsec.service.led_listeners import LedListeners, Left
from mitmsec_redirect import netns, steps
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.inbound_records import Inbound, listener, parse_inbound
from mitmsec_redirect.open_listeners import open_listeners
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.steering import Steering

pytestmark = pytest.mark.root
COOKIE = 57  # SO_COOKIE
HOLDS = "import sys; print(flush=True); sys.stdin.read()"


class Scope:
    """A standing selection of so many pids."""

    def __init__(self, runs_fd: int) -> None:
        self.processes = ProcessTable()
        self.selection = steps.Selection(0, runs_fd, everything=False)
        self.selected: set[int] = {os.getpid()}
        self.undecided: set[int] = set()
        self.begun: list[int] = []

    def selects(self, process: Process) -> bool:
        return process.pid in self.selected | self.undecided

    def selected_pids(self) -> list[int]:
        return sorted(self.selected | self.undecided)

    def newly_selected(self) -> tuple[list[int], int]:
        begun, self.begun = self.begun, []
        return begun, 0

    def is_undecided(self, pid: int) -> bool:
        return pid in self.undecided


class Stage:
    """In a network namespace of its own, where nobody listens yet. This process is selected, unless it says so."""

    def __init__(self, held: contextlib.ExitStack) -> None:
        self._held = held
        network = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        held.callback(os.close, network)
        self.runs = Map.create(MapKind.HASH, 8, 4, 8, "test_runs")
        held.callback(self.runs.close)
        heartbeat = Map.create(MapKind.ARRAY, 4, 8, 1, "test_heartbeat")
        held.callback(heartbeat.close)
        gate = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.steering = Steering.open(
            [gate.fileno()], heartbeat_fd=heartbeat.fd, on_failure=OnFailure.OPEN, netns_fd=network
        )
        held.callback(self.steering.close)
        gate.close()
        self.scope = Scope(self.runs.fd)
        held.callback(self.scope.processes.close)
        self.led = LedListeners(self.scope, self.steering, network)

    def listen(self, address: str = "127.0.0.1") -> socket.socket:
        return self._held.enter_context(socket.create_server((address, 0)))

    def heir(self, sock: socket.socket) -> int:
        """Another process that has it open too."""
        return self.heirs_process(sock).pid

    def heirs_process(self, sock: socket.socket) -> subprocess.Popen[str]:
        command = [sys.executable, "-I", "-S", "-c", HOLDS]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[sock.fileno()], text=True
        )
        self._held.callback(process.communicate)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def told(self, sock: socket.socket, pid: int | None = None) -> Inbound:
        """As the kernel keeps, and tells of, a program that begins to listen."""
        record = listener(
            cookie=cookie_of(sock),
            netns=netns.current_cookie(),
            at_ns=0,
            local=bytes(16),
            port=sock.getsockname()[1],
            pid=pid or os.getpid(),
            uid=0,
            comm="python3",
            by_selected=False,
        )
        assert self.steering.keep(record)
        return parse_inbound(record)

    @property
    def kept(self) -> set[int]:
        return {one.cookie for one in self.steering.kept()}


def cookie_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, COOKIE, 8), sys.byteorder)


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with contextlib.ExitStack() as held:
            yield Stage(held)
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


def test_what_a_selected_process_has_open_is_led_and_named_after_it(stage: Stage) -> None:
    ours, passed_on = stage.listen(), stage.listen()
    cookie, called, heir = cookie_of(passed_on), passed_on.getsockname(), stage.heir(passed_on)
    passed_on.close()
    stage.scope.selected = {heir}
    stage.led.sweep()
    (one,) = stage.steering.kept()
    comm = Path(f"/proc/{heir}/comm").read_text().rstrip("\n")
    assert (one.cookie, one.pid, one.uid, one.comm) == (cookie, heir, 0, comm)
    assert (one.local.address, one.local.port, one.by_selected) == (*called, True)
    assert one.netns == netns.current_cookie()
    stage.scope.selected.add(os.getpid())
    stage.led.sweep()
    assert stage.kept == {cookie_of(ours), cookie}


def test_nothing_is_led_any_more_of_who_has_ended_or_is_not_selected_now(stage: Stage) -> None:
    ours, passed_on = stage.listen(), stage.listen()
    heir = stage.heir(passed_on)
    stage.scope.selected = {os.getpid(), heir}
    stage.led.sweep()
    assert stage.kept == {cookie_of(ours), cookie_of(passed_on)}
    ours.close()
    stage.led.sweep()
    assert stage.kept == {cookie_of(passed_on)}
    stage.scope.selected = set()
    stage.led.sweep()
    assert stage.kept == set()


def test_what_a_search_has_found_holds_no_more_once_another_has_begun(stage: Stage) -> None:
    """As of a policy that is in force no more."""
    sock = stage.listen()
    before = stage.led.search()()
    stage.scope.selected = set()
    stage.led.sweep()
    stage.led.swept(before)
    assert stage.kept == set()
    stage.scope.selected = {os.getpid()}
    stage.led.swept(stage.led.search()())
    assert stage.kept == {cookie_of(sock)}


def test_what_begins_to_listen_during_a_search_stays_kept(stage: Stage) -> None:
    read = stage.led.search()
    sock = stage.listen()
    stage.told(sock)
    stage.led.swept(read())
    later = stage.listen()
    found = stage.led.search()()
    after = stage.listen()
    stage.told(after)
    stage.led.swept(found)
    assert stage.kept == {cookie_of(one) for one in (sock, later, after)}


def test_what_is_another_process_s_by_now_is_led_for_that_one(stage: Stage) -> None:
    """Who listened is not selected any more; who else has it open is."""
    sock = stage.listen()
    stage.led.sweep()
    heir = stage.heir(sock)
    sock.close()
    stage.scope.selected = {heir}
    stage.led.sweep()
    assert [one.pid for one in stage.steering.kept()] == [heir]


def test_what_is_made_in_a_run_is_the_runs(stage: Stage) -> None:
    stage.listen()
    (one,) = open_listeners()
    stage.runs.update(struct.pack("=Q", one.cgroup), struct.pack("=I", 1))
    stage.led.sweep()
    assert stage.kept == set()


def test_who_turns_out_not_to_be_selected_as_it_listens_is_let_go_at_once(stage: Stage) -> None:
    ours, other = stage.told(stage.listen()), stage.told(stage.listen(), pid=1)
    stage.led.heard(ours, Process(pid=os.getpid()))
    stage.led.heard(other, Process(pid=1))
    assert stage.kept == {ours.cookie}


def test_what_an_undecided_program_does_not_listen_on_any_more_is_not_remembered_without_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(led_listeners, "DOUBTFUL_LIMIT", 2)
    stage.scope.selected, stage.scope.undecided = set(), {os.getpid()}
    told = [stage.told(stage.listen()) for _ in range(4)]
    for ended in told[:3]:
        stage.led.heard(ended, Process(pid=os.getpid()))
        stage.steering.forget(ended.cookie)  # as the kernel does at its close
    stage.led.heard(told[3], Process(pid=os.getpid()))
    assert set(stage.led._doubtful) == {one.cookie for one in told[2:]}


def test_who_is_undecided_under_another_policy_is_led_until_it_is_judged(stage: Stage) -> None:
    """Its hash decides, and is to be read first."""
    sock = stage.listen()
    stage.led.sweep()
    stage.scope.selected, stage.scope.undecided = set(), {os.getpid()}
    stage.led.sweep()
    stage.led.look()
    assert stage.kept == {cookie_of(sock)}
    stage.scope.undecided = set()
    stage.led.look()
    assert stage.kept == set()


@pytest.mark.parametrize("becomes_selected", [True, False])
@pytest.mark.parametrize("is_heard", [True, False])
def test_who_is_undecided_is_led_until_it_is_judged(stage: Stage, *, becomes_selected: bool, is_heard: bool) -> None:
    sock = stage.listen()
    stage.scope.selected, stage.scope.undecided = set(), {os.getpid()}
    if is_heard:
        stage.led.heard(stage.told(sock), Process(pid=os.getpid()))
    else:
        stage.led.sweep()
    stage.led.look()
    assert stage.kept == {cookie_of(sock)}
    stage.scope.undecided = set()
    if becomes_selected:
        stage.scope.selected = {os.getpid()}
    stage.led.look()
    assert stage.kept == ({cookie_of(sock)} if becomes_selected else set())


def test_who_was_undecided_and_is_selected_takes_nothing_of_the_undecideds_share(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which three found it each in its way: told by the kernel, judged meanwhile, and swept anew."""
    told: list[int] = []
    decided = stage.steering.decided
    monkeypatch.setattr(stage.steering, "decided", lambda cookie: (told.append(cookie), decided(cookie)))
    heard, judged, swept = stage.listen(), stage.listen(), stage.listen()
    stage.led.heard(stage.told(heard), Process(pid=os.getpid()))
    assert told == [cookie_of(heard)]
    stage.scope.selected, stage.scope.undecided = set(), {os.getpid()}
    stage.led.heard(stage.told(judged), Process(pid=os.getpid()))
    stage.told(swept)
    assert told == [cookie_of(heard)]
    stage.scope.selected, stage.scope.undecided = {os.getpid()}, set()
    stage.led.look()
    assert told == [cookie_of(heard), cookie_of(judged)]
    stage.led.sweep()
    assert set(told) == stage.kept


def test_what_a_selected_program_begins_with_is_led_though_somebody_else_has_made_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd's socket units are: who made it, this process here, is not selected, whom it is passed on to is."""
    monkeypatch.setattr(led_listeners, "MANAGER", os.getpid())
    sock, other = stage.listen(), stage.listen()
    stage.scope.selected = set()
    stage.led.sweep()
    heir = stage.heir(sock)
    stage.led.look()
    assert stage.kept == set()
    stage.scope.selected, stage.scope.begun = {heir}, [heir, heir + 1]
    stage.led.look()
    assert [(one.cookie, one.pid) for one in stage.steering.kept()] == [(cookie_of(sock), heir)]
    assert other.fileno() >= 0


def test_who_is_kept_already_stays_whose_it_was(stage: Stage) -> None:
    sock = stage.listen()
    stage.led.sweep()
    stage.scope.begun = [stage.heir(sock)]
    stage.led.look()
    assert [one.pid for one in stage.steering.kept()] == [os.getpid()]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look sees who has ended."""
    monkeypatch.setattr(led_listeners, "ENDED_S", 0.0)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("is_swept", [True, False])
def test_a_server_that_leaves_its_listener_open_to_what_it_starts_keeps_its_connections(
    stage: Stage, *, is_swept: bool
) -> None:
    """It is not selected, whatever is decided for its child; once it has let go of it, that is the child's."""
    sock = stage.listen()
    cookie, child = cookie_of(sock), stage.heirs_process(sock)
    stage.scope.selected, stage.scope.begun = {child.pid}, [child.pid]
    if is_swept:
        stage.led.sweep()
    for _ in range(2):
        stage.led.look()
        assert stage.kept == set()
    sock.close()
    stage.led.look()
    assert stage.kept == {cookie}
    child.communicate()
    stage.led.look()
    assert stage.kept == set()


@pytest.mark.usefixtures("soon")
def test_a_listener_that_was_a_servers_and_ended_with_it_is_nobodys(stage: Stage) -> None:
    sock = stage.listen()
    child = stage.heirs_process(sock)
    stage.scope.selected, stage.scope.begun = {child.pid}, [child.pid]
    stage.led.look()
    child.communicate()
    sock.close()
    stage.led.look()
    assert (stage.kept, stage.led._elders) == (set(), {})


@pytest.mark.usefixtures("soon")
def test_of_several_of_ours_that_have_it_open_another_has_it_when_the_first_has_ended(stage: Stage) -> None:
    sock = stage.listen()
    cookie, first, second = cookie_of(sock), stage.heirs_process(sock), stage.heir(sock)
    sock.close()
    stage.scope.selected = {first.pid}
    stage.led.sweep()
    stage.scope.selected = {first.pid, second}
    first.communicate()
    assert stage.led.look() == Left(begun=0, passed_on=True)
    assert stage.kept == set()
    stage.led.sweep()
    assert stage.led.look() == Left(begun=0, passed_on=False)
    assert [(one.cookie, one.pid) for one in stage.steering.kept()] == [(cookie, second)]


@pytest.mark.usefixtures("soon")
def test_what_systemd_has_made_is_led_until_it_starts_the_program_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process plays systemd's part."""
    monkeypatch.setattr(led_listeners, "MANAGER", os.getpid())
    sock = stage.listen()
    service = stage.heirs_process(sock)
    stage.scope.selected, stage.scope.begun = {service.pid}, [service.pid]
    stage.led.look()
    service.communicate()
    stage.led.look()
    assert stage.kept == {cookie_of(sock)}
    sock.close()
    stage.led.look()
    assert stage.kept == set()


def test_of_a_program_that_begins_only_the_first_descriptors_are_looked_at(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One may begin with a million of them, and often."""
    sock = stage.listen()
    cookie, heir = cookie_of(sock), stage.heir(sock)
    sock.close()
    stage.scope.selected = {heir}
    for limit, kept in ((1, set()), (64, {cookie})):
        monkeypatch.setattr(led_listeners, "INHERITED_LIMIT", limit)
        stage.scope.begun = [heir]
        stage.led.look()
        assert stage.kept == kept


@pytest.mark.usefixtures("soon")
def test_whose_ancestors_have_too_much_open_is_looked_for_by_a_sweep(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what has just begun nor what an ancestor may have let go of keeps the loop waiting."""
    monkeypatch.setattr(led_listeners, "LOOKED_AT_MOST", 0)
    sock = stage.listen()
    cookie, child = cookie_of(sock), stage.heir(sock)
    stage.scope.selected, stage.scope.begun = {child}, [child]
    assert stage.led.look() == Left(begun=0, passed_on=True)
    stage.led.sweep()
    sock.close()
    assert stage.led.look() == Left(begun=0, passed_on=True)
    assert stage.kept == set()
    with monkeypatch.context() as patched:
        patched.setattr(led_listeners, "SEARCHED_MOST", 0)
        stage.led.sweep()
        assert stage.kept == set(), "nor a search that would never end"
    stage.led.sweep()
    assert stage.kept == {cookie}


@pytest.mark.usefixtures("soon")
def test_another_of_ours_has_what_an_ancestor_leaves_when_the_first_has_ended_before(stage: Stage) -> None:
    sock = stage.listen()
    cookie, first, second = cookie_of(sock), stage.heirs_process(sock), stage.heir(sock)
    stage.scope.selected, stage.scope.begun = {first.pid, second}, [first.pid, second]
    assert stage.led.look() == Left(begun=0, passed_on=False)
    first.communicate()
    assert stage.led.look() == Left(begun=0, passed_on=True)
    stage.led.sweep()
    sock.close()
    assert stage.led.look() == Left(begun=0, passed_on=False)
    assert [(one.cookie, one.pid) for one in stage.steering.kept()] == [(cookie, second)]


def test_who_was_undecided_as_a_search_began_and_is_not_selected_as_it_ends_is_not_led(stage: Stage) -> None:
    sock = stage.listen()
    stage.scope.selected, stage.scope.undecided = set(), {os.getpid()}
    stage.told(sock)
    found = stage.led.search()()
    stage.scope.undecided = set()
    stage.led.swept(found)
    assert stage.kept == set()
    assert stage.led.look() == Left(begun=0, passed_on=True), "another may have it open who is selected"
    assert stage.led.look() == Left(begun=0, passed_on=False)


@pytest.mark.usefixtures("soon")
def test_what_was_found_with_one_that_has_ended_since_is_not_led_for_whoever_else_has_it(stage: Stage) -> None:
    """Of a process that has ended nobody can say whose child it was: here its parent's listener stays its own."""
    sock = stage.listen()
    child = stage.heirs_process(sock)
    stage.scope.selected = {child.pid}
    found = stage.led.search()()
    child.communicate()
    stage.led.swept(found)
    assert stage.kept == set()
    assert stage.led.look() == Left(begun=0, passed_on=True)
    assert sock.fileno() >= 0
