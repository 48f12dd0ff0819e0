"""The supervisor's side of a diverter: started, watched, replaced, and gone without a trace. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from divert_ground import Ground, ground, stat_of

from mitmsec.core.model import OnFailure, Quic
from mitmsec.service import divert_backend as module
from mitmsec.service import ground as ground_module
from mitmsec.service.divert_backend import DivertBackend
from mitmsec.service.ground import reserved_ports
from mitmsec_redirect.backend import BackendKind, BackendUnavailable
from mitmsec_redirect.pulse import Pulse

pytestmark = pytest.mark.root
GATE_PORT = 8085


@pytest.fixture
def place() -> Iterator[Ground]:
    with ground("divertbackend") as made:
        yield made


async def opened(place: Ground, on_failure: OnFailure = OnFailure.OPEN) -> DivertBackend:
    return await DivertBackend.open(
        place.cgroup.path,
        gate_port=GATE_PORT,
        on_failure=on_failure,
        quic=Quic.REFUSE,
        network=place.network,
        label=place.cgroup.path.name,
        log=print,
    )


async def closed(backend: DivertBackend) -> None:
    backend.close()
    await backend.ended()


async def until(is_so: Callable[[], bool], within_s: float = 20) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


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
        assert place.programs() == 0
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
    assert place.programs() == 0


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
    assert place.programs() == 0


def test_one_that_cannot_be_replaced_is_tried_again(place: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> list[str]:
        backend = await opened(place)
        real = module.spawn
        monkeypatch.setattr(module, "spawn", lambda *_: os.posix_spawn("/bin/false", ["false"], {}))
        backend.children[0].kill()
        faults: list[str] = []
        await until(lambda: "diverter_not_started" in (faults.extend(x.what for x in backend.troubles()) or faults))
        assert place.programs() == 0, "open, and nothing left behind"
        before_ns = time.monotonic_ns()
        assert backend.last_beat_ns < before_ns, "a gate that is silent is silent"
        Pulse(backend.ground.heartbeat_fd).beat()
        assert backend.last_beat_ns >= before_ns, "one that beats is heard, though there is no diverter"
        monkeypatch.setattr(module, "spawn", real)
        await until(lambda: place.programs() > 0)
        await closed(backend)
        return faults

    assert asyncio.run(story())[:2] == ["diverter_died", "diverter_not_started"]
    assert place.programs() == 0


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
