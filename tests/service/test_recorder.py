"""The recorder as a process: real children, real sockets, killed and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from audit_events import CURL, connection, finding, handed, request
from recorder_child import SESSION, RecorderChild, recorder

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import BytesSeen, CertificateSeen, FaultSeen, SealedSeen, SecretsSeen, ServiceSeen
from mitmsec.audit.index import FILE_NAME as INDEX
from mitmsec.audit.producer import CAPTURE_LOST, Producer
from mitmsec.audit.recovery import LAST_NAME
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME
from mitmsec.audit.verifying import Verified
from mitmsec.core.messages import (
    CaptureOpen,
    Fault,
    ModulesAnswer,
    ModulesQuestion,
    ProducerUp,
    Role,
    SessionFlush,
    encode,
)
from mitmsec.core.model import Endpoint
from mitmsec.seal import FILE_NAME as KEY_NAME
from mitmsec.service.caller import Caller, open_result

SETTINGS = "import mitmsec.service.recorder as r; r.{} = {}; r.child.main(r.ACCEPTS, r.Recorder)"
LEAF = CertificateSeen(flow="flow-1", serial="1", names=("a.example",), not_after="2026-12-01T00:00:00Z")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(play())


def events(folder: Path) -> list[dict[str, Any]]:
    """Everything in the log, which must be whole."""
    with opened(folder) as log:
        assert isinstance(log.proofs.verify(), Verified)
        return list(log.events(Filter()))


def test_a_run_is_recorded_with_its_owner_and_summed_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            signer, supervisor = child.producer(Role.SIGNER, session=""), child.producer(Role.SUPERVISOR, session="")
            supervisor.record(ServiceSeen(operation="run_started", session=SESSION, command=("curl", "x")))
            gate.record(handed())
            await gate.flushed()
            signer.record(
                CertificateSeen(flow="flow-1", serial="1", names=("a.example",), not_after="2026-12-01T00:00:00Z")
            )
            worker.record(request())
            worker.record(finding())
            await asyncio.gather(worker.flushed(), signer.flushed(), supervisor.flushed())
            gate.record(connection())
            await gate.flushed()
            assert (gate.sent, gate.committed) == (2, 2)
            gate.close()
            worker.close()
            answer = await child.flush()
            assert (answer.connections, answer.requests, answer.findings, answer.faults) == (1, 1, 1, 0)
            assert len(events(tmp_path)) == 5  # while it lives
            assert (await child.flush()).connections == 0
            signer.close()
            supervisor.close()
            assert await child.end() == 0
            assert child.errors() == ""

    run(scenario)
    found = events(tmp_path)
    assert [event["seq"] for event in found] == list(range(5))
    by_kind = {event["kind"]: event for event in found}
    assert by_kind.keys() == {"service", "certificate", "request", "finding", "connection"}
    for kind in ("request", "finding", "connection"):
        assert by_kind[kind]["process"]["exe"] == CURL.exe
        assert by_kind[kind]["connection"] == "flow-1"
    assert {by_kind[kind]["session"] for kind in by_kind} == {SESSION}
    assert by_kind["request"]["producer"] == "worker-0"
    assert by_kind["connection"]["id"] == "flow-1"
    assert len({event["id"] for event in found}) == 5
    assert all(event["time"].endswith("Z") for event in found)


def test_a_worker_whose_word_overtakes_the_gates_is_believed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            worker.record(request())
            worker.record(FaultSeen(what="marker"))
            while worker.committed or len(events(tmp_path)) < 1:  # the marker is on disk, the request waits
                await asyncio.sleep(0.01)
            gate.record(handed())
            await worker.flushed()

    run(scenario)
    kinds = [event["kind"] for event in events(tmp_path)]
    assert kinds == ["fault", "request"]


def test_a_worker_whose_word_overtakes_the_gates_is_believed_of_a_flow_that_another_had(tmp_path: Path) -> None:
    """The gate has told of it before: its word lies there when the worker's is read."""

    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate, first, second = (
                child.producer(Role.GATE), child.producer(Role.WORKER, 0), child.producer(Role.WORKER, 1)
            )  # fmt: skip
            gate.record(handed(worker=0))
            first.record(finding())
            await asyncio.gather(gate.flushed(), first.flushed())
            child.process.send_signal(signal.SIGSTOP)
            second.record(request())  # it is read in the order in which it came
            gate.record(handed(worker=1))
            first.record(finding())
            child.process.send_signal(signal.SIGCONT)
            await asyncio.gather(gate.flushed(), first.flushed(), second.flushed())

    run(scenario)
    kinds = [event["kind"] for event in events(tmp_path)]
    assert sorted(kinds) == ["finding", "finding", "request"]


def test_what_a_producer_may_not_say_is_dropped_and_recorded_as_a_fault(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 1)
            bare = child.socket(Role.SIGNER, session="")
            gate.record(handed(worker=0))
            gate.record(request())
            for _ in range(50):
                worker.record(connection())
            worker.record(request())
            worker.record(request("flow-nobody-handed"))
            bare.send(b"no message at all")
            bare.settimeout(20)
            assert await asyncio.to_thread(bare.recv, 1) == b""  # it is closed at once, not only ignored
            bare.close()
            await asyncio.gather(gate.flushed(), worker.flushed())
            gate.close()
            worker.close()
            answer = await child.flush()
            assert (answer.connections, answer.requests) == (0, 0)
            assert answer.faults >= 4

    run(scenario)
    found = events(tmp_path)
    assert {(event["kind"], event["producer"]) for event in found} == {("fault", "recorder")}
    counts: dict[tuple[str, str], int] = {}
    for event in found:
        key = (event["what"], event["detail"])
        counts[key] = counts.get(key, 0) + event["count"]
    malformed = [key for key in counts if key[0] == "malformed_message"]
    assert len(malformed) == 1
    assert counts.pop(malformed[0]) == 1
    assert counts == {
        ("not_permitted", "gate: RequestSeen"): 1,
        ("not_permitted", "worker-1: ConnectionSeen"): 50,
        ("not_permitted", "worker-1: RequestSeen of a flow that it was not handed"): 1,
        ("not_permitted", "worker-1: RequestSeen of a flow that no gate told of"): 1,
    }
    assert len(found) < 20  # 53 refusals, few events


def test_a_worker_that_only_speaks_of_unknown_flows_stalls_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path, code=SETTINGS.format("AWAITED_S", 0.3)) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            for number in range(300):
                worker.record(request(f"unknown-{number}"))
            gate.record(connection())
            await gate.flushed()
            assert worker.committed < 300
            await worker.flushed()
            worker.close()
            gate.close()
            assert (await child.flush()).requests == 0

    run(scenario)
    refused = [event for event in events(tmp_path) if event["kind"] == "fault"]
    assert sum(event["count"] for event in refused) == 300


def test_a_second_recorder_on_one_log_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            second = RecorderChild(tmp_path, SETTINGS.format("ALONE_S", 0.2))
            assert await second.inbox.get() is None
            assert await second.end() == 1
            assert "another recorder is still writing this log" in second.errors()
            gate = child.producer(Role.GATE)
            gate.record(connection())
            await gate.flushed()
            gate.close()

    run(scenario)
    assert len(events(tmp_path)) == 1


def test_what_was_sent_before_a_producer_was_killed_is_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            far = child.socket(Role.GATE)
            far.setblocking(True)
            for number in range(40):
                far.send(encode(connection(f"flow-{number}")))
                if number == 20:
                    far.recv(1000)  # so that answers are under way, most of them never read
            far.close()
            assert (await child.flush()).connections == 40

    run(scenario)
    assert len(events(tmp_path)) == 40


def test_the_supervisors_end_makes_the_recorder_finish_what_was_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate = child.producer(Role.GATE)
            worker = child.producer(Role.WORKER, 0)
            for number in range(500):
                gate.record(connection(f"flow-{number}"))
            worker.record(request("unknown"))
            child.control.close()
            await gate.flushed()
            gate.close()
            worker.close()
            assert await child.end() == 0

    run(scenario)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, KEY_NAME, LAST_NAME, INDEX, "lock"]
    found = events(tmp_path)
    assert [event["kind"] for event in found] == ["connection"] * 500 + ["fault"]


def test_a_producer_that_never_ends_does_not_keep_the_recorder_alive(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path, code=SETTINGS.format("DRAIN_S", 0.2)) as child:
            gate = child.producer(Role.GATE)
            gate.record(connection())
            await gate.flushed()
            assert await child.end() == 0

    run(scenario)
    assert len(events(tmp_path)) == 1


# --- death ------------------------------------------------------------------------------------------------------------
async def _record_until(gate: Producer, worker: Producer, start: int, enough: int) -> int:
    """Record pairs of events until `enough` messages are committed; how many flows there were."""
    number = start
    while not gate.gone and gate.committed < enough:
        for _ in range(20):
            gate.record(handed(f"flow-{number}"))
            gate.record(connection(f"flow-{number}"))
            worker.record(request(f"flow-{number}"))
            number += 1
        await asyncio.gather(gate.relieved(), worker.relieved())
        await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("seed", [1, 2])
def test_no_acknowledged_event_is_lost_when_the_recorder_is_killed_at_random(tmp_path: Path, seed: int) -> None:
    """The same log goes on after each death; every acknowledged message is in it, and the chain holds."""
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    asked: set[str] = set()

    async def life(start: int) -> int:
        async with recorder(tmp_path) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            recording = asyncio.create_task(_record_until(gate, worker, start, chance.randrange(1, 1500)))
            if start == 0 or chance.random() < 0.5:
                await recording
            else:
                for _ in range(chance.randrange(1, 60)):
                    await asyncio.sleep(0)
            child.process.kill()
            number = await recording
            while not (gate.gone and worker.gone):
                await asyncio.sleep(0.001)
            acknowledged.update(f"flow-{start + index // 2}" for index in range(gate.committed) if index % 2)
            asked.update(f"flow-{start + index}" for index in range(worker.committed))
            gate.close()
            worker.close()
            return number

    async def scenario() -> None:
        number = 0
        for _ in range(6):
            number = await life(number)

    run(scenario)
    found = events(tmp_path)
    assert acknowledged
    assert acknowledged <= {event["connection"] for event in found if event["kind"] == "connection"}
    assert asked <= {event["connection"] for event in found if event["kind"] == "request"}
    assert [event["seq"] for event in found] == list(range(len(found)))


def test_a_disk_that_takes_nothing_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """No acknowledgement while the disk is full; the same events once it is not, and a fault that says so."""

    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            gate = child.producer(Role.GATE)
            gate.record(connection("flow-0"))
            await gate.flushed()
            _, hard = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (1, hard))
            for number in range(1, 40):
                gate.record(connection(f"flow-{number}"))
            assert child.process.stderr is not None
            line = await asyncio.get_running_loop().run_in_executor(None, child.process.stderr.readline)
            assert b"the log takes no events" in line
            assert gate.committed == 1
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            await gate.flushed()
            assert gate.committed == 40
            gate.close()
            await child.flush()
            assert await child.end() == 0

    run(scenario)
    found = events(tmp_path)
    assert sum(event["kind"] == "connection" for event in found) == 40
    assert [event["what"] for event in found if event["kind"] == "fault"] == ["log_unwritable"]


def test_a_log_that_was_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely" * 100)

    async def scenario() -> None:
        child = RecorderChild(tmp_path)
        refused = await child.inbox.get()
        assert isinstance(refused, Fault)
        assert (refused.what, "not a database" in refused.detail) == ("log_damaged", True)
        assert await child.end() == 0
        assert child.errors() == ""

    run(scenario)


def test_a_log_whose_key_cannot_be_written_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / f"{KEY_NAME}.new").mkdir()  # where it would be written to, as on a disk that takes nothing

    async def scenario() -> None:
        child = RecorderChild(tmp_path)
        refused = await child.inbox.get()
        assert isinstance(refused, Fault)
        assert (refused.what, KEY_NAME in refused.detail) == ("log_unwritable", True)
        assert await child.end() == 0
        assert child.errors() == ""

    run(scenario)
    assert not (tmp_path / FILE_NAME).exists()


# --- capture ----------------------------------------------------------------------------------------------------------
def piece(data: bytes, *, sent: bool = True, first: bool = False) -> BytesSeen:
    if not first:
        return BytesSeen(flow="flow-1", sent=sent, data=data)
    local, remote = Endpoint.of("127.0.0.1", 40000), Endpoint.of("192.0.2.7", 443)
    return BytesSeen(flow="flow-1", sent=sent, data=data, process=CURL, local=local, remote=remote)


def test_captured_bytes_and_keys_go_into_the_sessions_file_and_not_into_the_log(tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    keys = b"CLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48 + b"\n"

    async def scenario() -> None:
        async with recorder(tmp_path / "log") as child:
            child.capture(path)
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            gate.record(piece(b"", first=True))
            gate.record(handed())
            worker.record(SecretsSeen(flow="flow-1", lines=keys))
            worker.record(piece(b"bytes that were sent"))
            worker.record(piece(b"bytes that came back", sent=False))
            await worker.flushed()
            gate.record(connection())
            await gate.flushed()
            gate.close()
            worker.close()
            await child.flush()
            data = path.read_bytes()  # complete as soon as the session is
            for part in (
                b"bytes that were sent",
                b"bytes that came back",
                b"CLIENT_RANDOM",
                b"/usr/bin/curl",
                b"flow-1",
            ):
                assert part in data

    run(scenario)
    assert [event["kind"] for event in events(tmp_path / "log")] == ["connection"]
    assert b"bytes that" not in (tmp_path / "log" / FILE_NAME).read_bytes()


def test_a_capture_that_fails_is_recorded_and_the_log_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path / "log") as child:
            child.capture(Path("/dev/full"))
            gate = child.producer(Role.GATE)
            gate.record(piece(b"x", first=True))
            gate.record(FaultSeen(what=CAPTURE_LOST, count=3))
            gate.record(connection())
            await gate.flushed()
            gate.close()
            assert (await child.flush()).connections == 1

    run(scenario)
    whats = [event["what"] for event in events(tmp_path / "log") if event["kind"] == "fault"]
    assert sorted(whats) == ["capture_failed", CAPTURE_LOST]


def test_the_recorder_holds_no_keys_but_the_logs_own_and_no_traffic_engines(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            child.control.send(ModulesQuestion())
            answer = await child.inbox.get()
            assert isinstance(answer, ModulesAnswer)
            loaded = {module.partition(".")[0] for module in answer.modules}
            assert not loaded & {"mitmproxy", "OpenSSL", "pydivert", "psutil"}
            assert not loaded & {"mitmsec_certs", "mitmsec_redirect", "mitmsec_addons"}
            assert "mitmsec.gate" not in answer.modules

    run(scenario)


SLOW = """
import os, time, types
import mitmsec.service.quarantine_folder as q, mitmsec.service.recorder as r
def fsync(descriptor):
    while not os.path.exists({go!r}):
        time.sleep(0.01)
    os.fsync(descriptor)
q.os = types.SimpleNamespace(**{{**vars(os), "fsync": fsync}})
r.child.main(r.ACCEPTS, r.Recorder)
"""


def test_events_do_not_wait_for_what_goes_under_quarantine_and_the_runs_end_does(tmp_path: Path) -> None:
    go, folder = tmp_path / "go", tmp_path / "quarantine"
    folder.mkdir()

    async def scenario() -> None:
        async with recorder(tmp_path / "log", SLOW.format(go=str(go)), str(folder)) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            gate.record(handed("flow1"))
            await gate.flushed()
            for number in range(2):
                worker.record(SealedSeen(flow="flow1", item=f"flow1-0000000{number}", at=0, data=b"x", is_last=True))
                worker.record(finding("flow1"))
            async with asyncio.timeout(5):
                await worker.flushed()
            worker.close()
            gate.close()
            child.control.send(SessionFlush(session=SESSION))
            await asyncio.sleep(0.3)
            assert child.inbox.empty()
            go.touch()
            assert (await child.inbox.get()).findings == 2
            found = [event for event in events(tmp_path / "log") if event["kind"] != "finding"]
            assert [(event["kind"], event["operation"]) for event in found] == [("service", "quarantined")] * 2

    run(scenario)
    assert len(list(folder.iterdir())) == 2


def descriptors(child: Any) -> int:
    return len(os.listdir(f"/proc/{child.process.pid}/fd"))


async def descriptors_later(child: Any) -> int:
    await asyncio.sleep(0.5)
    return descriptors(child)


def test_descriptors_that_no_message_asks_for_are_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            while not list(tmp_path.glob("*-wal")) or (before := descriptors(child)) != await descriptors_later(child):
                pass  # the index is opened in a thread of its own
            child.control.send(ProducerUp(role=Role.GATE), 0, 1)
            child.control.send(SessionFlush(session="run-9"), 0)
            assert (await child.inbox.get()).session == "run-9"
            assert descriptors(child) == before

    run(scenario)


def pieces(count: int) -> list[BytesSeen]:
    local, remote = Endpoint.of("192.0.2.1", 40000), Endpoint.of("192.0.2.2", 443)
    return [
        BytesSeen(flow="flow-1", sent=True, data=bytes(60_000), process=CURL, local=local, remote=remote)
        for _ in range(count)
    ]


def pipe_as_run_opens_it(path: Path) -> tuple[int, int]:
    """A reader's end, and what `--capture` makes of the path."""
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return reading, open_result(str(path), Caller(uid=os.getuid(), gid=os.getgid(), name="root", home="/"))


def test_a_capture_whose_reader_stops_ends_alone_and_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        reading, writing = pipe_as_run_opens_it(tmp_path / "fifo")
        async with recorder(tmp_path / "log") as child:
            child.control.send(CaptureOpen(session=SESSION, command="curl"), writing)
            os.close(writing)
            gate, other = child.producer(Role.GATE), child.producer(Role.GATE, session="run-2")
            for piece in pieces(400):  # more than a pipe, and all that waits for it, can hold
                gate.record(piece)
                await gate.relieved()
            other.record(FaultSeen(what="marker"))
            await asyncio.wait_for(other.flushed(), 10)
            await gate.flushed()
            gate.close()
            assert (await child.flush()).faults == 1
            other.close()
        os.close(reading)

    (tmp_path / "log").mkdir()
    run(scenario)
    details = {event["what"]: event["detail"] for event in events(tmp_path / "log")}
    assert "the reader does not keep up" in details["capture_failed"]


def test_a_capture_whose_reader_is_late_is_whole_when_the_run_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        reading, writing = pipe_as_run_opens_it(tmp_path / "fifo")
        async with recorder(tmp_path / "log") as child:
            child.control.send(CaptureOpen(session=SESSION, command="curl"), writing)
            os.close(writing)
            gate = child.producer(Role.GATE)
            for piece in pieces(100):
                gate.record(piece)
            await gate.flushed()
            gate.close()
            flushing = asyncio.create_task(child.flush())
            await asyncio.sleep(0.5)
            assert not flushing.done()
            size_bytes = 0
            while not flushing.done():
                with contextlib.suppress(BlockingIOError):
                    size_bytes += len(os.read(reading, 1 << 20))
                await asyncio.sleep(0.01)
            while piece_bytes := len(os.read(reading, 1 << 20)):
                size_bytes += piece_bytes
            assert (await flushing).faults == 0
            assert size_bytes > 100 * 60_000
        os.close(reading)

    (tmp_path / "log").mkdir()
    run(scenario)


@pytest.mark.parametrize("count", [-1, 2**63, -(2**63)])
def test_no_count_of_a_workers_ends_the_recorder(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            child.capture(tmp_path / "capture.pcapng")
            bare = child.socket(Role.WORKER, 0)
            bare.send(encode(FaultSeen(what=CAPTURE_LOST, count=count)))
            bare.close()
            assert (await child.flush()).faults == 1
            assert await child.end() == 0
            assert child.errors() == ""

    run(scenario)


def test_a_flood_by_one_worker_is_counted_and_costs_the_others_nothing(tmp_path: Path) -> None:
    """Texts as long as a packet, from a producer that knows no window; the recorder's memory and another run's wait."""
    packet = encode(FaultSeen(what="y", detail="z" * 170_000))

    async def scenario() -> None:
        async with recorder(tmp_path) as child:
            other, bare = child.producer(Role.GATE, session="run-2"), child.socket(Role.WORKER, 0)
            bare.settimeout(5)
            over = threading.Event()

            def flood() -> int:
                sent = 0
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        bare.send(packet)
                        sent += 1
                return sent

            flooding = asyncio.create_task(asyncio.to_thread(flood))
            await asyncio.sleep(0.5)
            waits_s, memory_mb = [], 0
            for _ in range(20):
                before_s = time.monotonic()
                other.record(FaultSeen(what="marker"))
                await other.flushed()
                waits_s.append(time.monotonic() - before_s)
                memory_mb = max(memory_mb, resident_mb(child.process.pid))
            over.set()
            sent = await flooding
            bare.close()
            other.close()
            counted = (await child.flush()).faults
            assert memory_mb < 150, memory_mb
            assert sorted(waits_s)[10] < 1, waits_s
            assert counted < sent // 2
            told.append(sent)

    told: list[int] = []
    run(scenario)
    mine = [event for event in events(tmp_path) if event["kind"] == "fault" and event.get("session") != "run-2"]
    dropped = [event for event in mine if event["what"] == "faults_dropped"]
    assert sum(event["count"] for event in mine) == told[0]
    assert dropped
    assert all(len(event["detail"]) <= 1024 for event in mine)


def resident_mb(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) >> 10
