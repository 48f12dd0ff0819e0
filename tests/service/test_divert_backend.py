"""The supervisor's side of a diverter: started, watched, replaced, and gone without a trace. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from divert_ground import Ground, ground, stat_of

from mitmsec.core.model import Endpoint, OnFailure, Quic
from mitmsec.service import divert_backend as module
from mitmsec.service import ground as ground_module
from mitmsec.service.divert_backend import DivertBackend
from mitmsec.service.ground import reserved_ports
from mitmsec_redirect.backend import BackendKind, BackendUnavailable
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.expected_flows import ExpectedFlows
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.records import Reason
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import ENTRY, PID, Verdict, entry

pytestmark = pytest.mark.root
GATE_PORT = 8085


@pytest.fixture
def place() -> Iterator[Ground]:
    with ground("divertbackend") as made:
        yield made


async def opened(
    place: Ground,
    on_failure: OnFailure = OnFailure.OPEN,
    selection: Selection | None = None,
    *,
    pin_folder: Path | None = None,
    keep: Callable[[Path], None] = lambda folder: None,
) -> DivertBackend:
    return await DivertBackend.open(
        place.cgroup.path,
        gate_port=GATE_PORT,
        on_failure=on_failure,
        quic=Quic.REFUSE,
        network=place.network,
        label=place.cgroup.path.name,
        log=print,
        selection=selection,
        pin_folder=pin_folder,
        keep=keep,
    )


async def closed(backend: DivertBackend) -> None:
    backend.close()
    await backend.ended()


async def until(is_so: Callable[[], bool], within_s: float = 20) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


async def found[Found](look: Callable[[], Found | None]) -> Found:
    seen: list[Found] = []
    await until(lambda: (one := look()) is not None and (seen.append(one) or True))
    return seen[0]


def test_it_works_beats_and_leaves_nothing(place: Ground) -> None:
    async def story() -> None:
        backend = await opened(place)
        pid = backend.children[0].pid
        assert backend.kind is BackendKind.WINDIVERT
        assert place.programs() > 0
        assert len(backend.ground.descriptors) == 2
        assert backend.ground.local_ports == (61000, 62999)
        os.eventfd_write(backend.ground.heartbeat_fd or -1, 1)
        before_ns = time.monotonic_ns()
        await until(lambda: backend.last_beat_ns > before_ns - 1_000_000_000)
        assert (backend.diverted, backend.missed(), backend.lost(), backend.troubles()) == (0, [], {}, [])
        backend.set_port(GATE_PORT, GATE_PORT)
        with pytest.raises(ValueError, match="cannot be changed"):
            backend.set_port(GATE_PORT + 1, None)
        backend.stall()
        await until(lambda: backend.last_beat_ns == 0)
        await closed(backend)
        assert stat_of(pid) == ""
        assert place.is_bare()
        await asyncio.sleep(0)
        backend.close()  # again

    asyncio.run(story())


def test_a_second_one_in_the_same_namespace_is_refused(place: Ground) -> None:
    async def story() -> None:
        first = await opened(place)
        with pytest.raises(BackendUnavailable) as refused:
            await opened(place)
        assert refused.value.reason == "another run diverts with windivert in this network namespace"
        assert place.programs() > 0, "the first one's"
        await closed(first)

    asyncio.run(story())
    assert place.is_bare()


BRIEF = """
import os, socket, sys
os.setns(int(sys.argv[1]), os.CLONE_NEWNET)
sock = socket.socket()
sock.bind(("10.79.0.1", 40000))
sock.setblocking(False)
child = os.fork()
if not child:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    sock.connect_ex(("10.79.0.2", 80))
    os._exit(0)
os.waitpid(child, 0)
print("ended", flush=True)
sys.stdin.readline()
"""


def test_who_is_selected_is_known_at_connect_though_it_has_ended_when_its_first_packet_is_read(place: Ground) -> None:
    """A service's. The socket lives on in another process, which is not selected."""

    async def story(verdicts: Map, runs: RunCgroups) -> None:
        backend = await opened(place, OnFailure.CLOSED, Selection(verdicts.fd, runs.fd, everything=False))
        try:
            await scene(backend, verdicts)
        finally:  # else it would go on refusing
            await closed(backend)

    async def scene(backend: DivertBackend, verdicts: Map) -> None:
        Pulse(backend.ground.heartbeat_fd or -1).beat()
        command = [sys.executable, "-I", "-S", "-c", BRIEF, str(place.network)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[place.network]
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            verdicts.update(PID.pack(child), ENTRY.pack(entry(time.monotonic_ns(), Verdict.SELECTED)))
            os.kill(backend.children[0].pid, signal.SIGSTOP)
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "ended\n"
            verdicts.delete(PID.pack(child))  # as the monitor does
            os.kill(backend.children[0].pid, signal.SIGCONT)
            gate = ExpectedFlows(socket.socket(fileno=os.dup(backend.ground.origins_fd or -1)))
            at_gate = Endpoint.of("10.79.0.2", 40000), Endpoint.of("10.79.0.1", GATE_PORT)
            flow = await found(lambda: gate.find(*at_gate, time.monotonic()))
            gate.close()
            parent.kill()
        assert (flow.origin.pid, flow.origin.selected, flow.origin.remote.port) == (child, True, 80)
        await until(lambda: backend.diverted == 1)
        assert (backend.missed(), backend.troubles()) == ([], [])

    place.give_addresses()
    with (
        contextlib.closing(Map.create(MapKind.HASH, PID.size, ENTRY.size, 16, "ms_selected")) as verdicts,
        contextlib.closing(RunCgroups()) as runs,
    ):
        asyncio.run(story(verdicts, runs))
    assert place.is_bare()


def test_what_has_to_outlive_us_is_pinned_before_there_is_a_diverter(
    place: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []

    def spawn(*_: object) -> int:
        story.append("a diverter")
        raise OSError("no more processes")

    monkeypatch.setattr(module, "spawn", spawn)
    with (
        contextlib.closing(Map.create(MapKind.HASH, PID.size, ENTRY.size, 16, "ms_selected")) as verdicts,
        contextlib.closing(RunCgroups()) as runs,
        pytest.raises(OSError, match="no more processes"),
    ):
        asyncio.run(
            opened(
                place,
                OnFailure.CLOSED,
                Selection(verdicts.fd, runs.fd, everything=False),
                pin_folder=tmp_path / "pins",
                keep=lambda folder: story.append(f"{folder.name} {folder.is_dir()}"),
            )
        )
    assert story == ["pins True", "a diverter"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
def test_one_that_hangs_or_dies_is_replaced_and_told(place: Ground, number: signal.Signals) -> None:
    async def story() -> list[str]:
        backend = await opened(place, OnFailure.CLOSED)
        victim = backend.children[0].pid
        os.kill(victim, number)
        begun_s = time.monotonic()
        await until(lambda: stat_of(victim) == "", within_s=3)
        assert time.monotonic() - begun_s < 2.5  # a second, two looks, and the machine's own slowness
        await until(lambda: backend.children[0].pid != victim and backend.last_beat_ns == 0)
        await until(lambda: place.programs() > 0)
        faults = [one.what for one in backend.troubles()]
        await closed(backend)
        return faults

    told = {signal.SIGSTOP: ["diverter_hangs", "diverter_died"], signal.SIGKILL: ["diverter_died"]}[number]
    assert asyncio.run(story()) == told
    assert place.is_bare()


def test_one_that_cannot_be_replaced_is_tried_again(place: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> list[str]:
        backend = await opened(place)
        real = module.spawn
        monkeypatch.setattr(module, "spawn", lambda *_: os.posix_spawn("/bin/false", ["false"], {}))
        backend.children[0].kill()
        faults: list[str] = []
        await until(lambda: "diverter_not_started" in (faults.extend(x.what for x in backend.troubles()) or faults))
        assert place.is_bare(), "open, and nothing left behind"
        before_ns = time.monotonic_ns()
        assert backend.last_beat_ns < before_ns, "a gate that is silent is silent"
        Pulse(backend.ground.heartbeat_fd).beat()
        assert backend.last_beat_ns >= before_ns, "one that beats is heard, though there is no diverter"
        monkeypatch.setattr(module, "spawn", real)
        await until(lambda: place.programs() > 0)
        await closed(backend)
        return faults

    assert asyncio.run(story())[:2] == ["diverter_died", "diverter_not_started"]
    assert place.is_bare()


CONNECTS = """
import os, socket, sys
os.setns(int(sys.argv[1]), os.CLONE_NEWNET)
open(sys.argv[2], "w").write("0")
sock = socket.socket()
sock.setblocking(False)
print(sock.connect_ex(("10.79.0.2", 80)))
"""


def test_while_there_is_no_diverter_other_terms_let_nobody_out(place: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    place.give_addresses()
    tried: list[int] = []

    def tries() -> None:
        procs = place.cgroup.path / "cgroup.procs"
        command = [sys.executable, "-I", "-S", "-c", CONNECTS, str(place.network), str(procs)]
        tried.append(int(subprocess.run(command, stdout=subprocess.PIPE, check=True, pass_fds=[place.network]).stdout))

    async def story() -> None:
        backend = await opened(place, OnFailure.CLOSED)
        try:
            await scene(backend)
        finally:
            await closed(backend)

    async def scene(backend: DivertBackend) -> None:
        monkeypatch.setattr(module, "spawn", lambda *_: os.posix_spawn("/bin/false", ["false"], {}))
        backend.children[0].kill()
        await until(lambda: any(one.what == "diverter_not_started" for one in backend.troubles()))
        opens = module.ConnectHook.open
        monkeypatch.setattr(module.ConnectHook, "open", lambda *a, **k: (tries(), opens(*a, **k))[1])
        tries()
        backend.change(on_failure=OnFailure.CLOSED, quic=Quic.BYPASS)
        tries()
        backend.change(on_failure=OnFailure.OPEN, quic=Quic.BYPASS)
        tries()
        assert [one.reason for one in backend.missed()] == [Reason.GATE_STALLED] * 3

    asyncio.run(story())
    assert tried == [errno.EPERM, errno.EPERM, errno.EPERM, errno.EINPROGRESS], "before, while and after they change"


CONNECTS_ON = """
import os, select, socket, sys
os.setns(int(sys.argv[1]), os.CLONE_NEWNET)
sock = socket.socket()
sock.setblocking(False)
sock.connect_ex(("10.79.0.2", 80))
print("connects", flush=True)
select.select([sys.stdin], [], [])
print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
"""


def test_what_selected_programs_have_begun_ends_with_the_diverter_and_nobody_elses(
    place: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's: whose a connection is, is found by who has its socket open."""
    place.give_addresses()

    async def story(verdicts: Map, runs: RunCgroups) -> None:
        with contextlib.ExitStack() as held:
            programs = [held.enter_context(connecting()) for _ in range(2)]
            verdicts.update(PID.pack(programs[0].pid), ENTRY.pack(entry(time.monotonic_ns(), Verdict.SELECTED)))
            backend = await opened(place, OnFailure.CLOSED, Selection(verdicts.fd, runs.fd, everything=False))
            try:
                monkeypatch.setattr(module, "spawn", lambda *_: os.posix_spawn("/bin/false", ["false"], {}))
                backend.children[0].kill()
                await until(lambda: any(one.what == "diverter_not_started" for one in backend.troubles()))
            finally:
                await closed(backend)
            assert [program.communicate("\n")[0] for program in programs] == [f"{errno.ECONNABORTED}\n", "0\n"]

    @contextlib.contextmanager
    def connecting() -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-I", "-S", "-c", CONNECTS_ON, str(place.network)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, pass_fds=[place.network], **pipes) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "connects\n"
            yield program
            program.kill()

    with (
        contextlib.closing(Map.create(MapKind.HASH, PID.size, ENTRY.size, 16, "ms_selected")) as verdicts,
        contextlib.closing(RunCgroups()) as runs,
    ):
        asyncio.run(story(verdicts, runs))


@pytest.mark.parametrize(
    ("said", "ports"),
    [("32768\t60999\n", (61000, 62999)), ("20000\t64000\n", (18000, 19999)), ("3024\t65535\n", (1024, 3023))],
)
def test_the_gates_own_ports_are_none_that_a_program_is_given(
    said: str, ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(said)
    monkeypatch.setattr(ground_module, "PORT_RANGE", tmp_path / "range")
    assert reserved_ports() == ports


def test_where_programs_are_given_all_ports_there_is_none_for_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("1024 65535")
    monkeypatch.setattr(ground_module, "PORT_RANGE", tmp_path / "range")
    with pytest.raises(BackendUnavailable, match="leaves no ports"):
        reserved_ports()
