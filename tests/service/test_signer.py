"""The signer as a process: who may tell it what, and what it records."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mitmsec.audit.event import CertificateSeen, FaultSeen, Seen
from mitmsec.channel import Channel, pair
from mitmsec.core.allowance import Allowance
from mitmsec.core.messages import (
    CaReload,
    Committed,
    Crls,
    Fault,
    Message,
    MintAnswer,
    MintDecision,
    MintQuestion,
    MintWithdrawn,
    ModulesAnswer,
    ModulesQuestion,
    ProducerUp,
    Role,
    SignerReady,
    SignerSettings,
)
from mitmsec.service import signer as module
from mitmsec.service.signer import Signer
from mitmsec_certs.signer import SignerDesk

SESSION = "run-1"


def asked(flow: str = "f", number: int = 1) -> MintQuestion:
    return MintQuestion(number=number, flow=flow)


class Desk:
    """A signer on this loop, and the other ends of everything that it is connected to."""

    def __init__(self, signer: Signer, recorder: Channel) -> None:
        self.signer = signer
        self.recorder = recorder
        self.loop = asyncio.get_running_loop()

    def introduce(self, role: Role, session: str = SESSION, worker: int = 0) -> Channel:
        ours, theirs = pair()
        self.signer.told(ProducerUp(role=role, session=session, worker=worker), [theirs.detach()])
        return Channel(ours, [MintAnswer, Crls])

    async def heard(self, channel: Channel) -> Any:
        """The next message, or None at the end of the channel."""
        readable = asyncio.Event()
        self.loop.add_reader(channel.fileno(), readable.set)
        try:
            while True:
                try:
                    received = channel.receive()
                except BlockingIOError:
                    readable.clear()
                    await asyncio.wait_for(readable.wait(), 20)
                    continue
                except ConnectionResetError:
                    return None
                return None if received is None else received[0]
        finally:
            self.loop.remove_reader(channel.fileno())

    async def answer(self, worker: Channel, question: MintQuestion) -> MintAnswer:
        worker.send(question)
        answer = await self.heard(worker)
        assert isinstance(answer, MintAnswer)
        return answer

    async def recorded(self) -> Any:
        return await self.heard(self.recorder)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come at once, except where a test is about waiting."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Desk]:
    control, _keep = pair()
    ours, theirs = pair()
    signer = Signer(Channel(control, [SignerSettings]))
    answer = await signer.start(SignerSettings(folder=str(folder / "ca")), [theirs.detach()])
    assert isinstance(answer, SignerReady)
    desk = Desk(signer, Channel(ours, [CertificateSeen, FaultSeen]))
    try:
        yield desk
    finally:
        desk.recorder.close()
        await signer.stop()
        control.close()
        _keep.close()


def told(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


@pytest.mark.checklist("K5")
def test_a_decided_flow_gets_its_leaf_and_the_recorder_hears_of_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            answer = await desk.answer(worker, asked())
            assert (answer.error, len(answer.chain)) == ("", 2)
            event = await desk.recorded()
            assert isinstance(event, CertificateSeen)
            assert (event.flow, event.names) == ("f", ("www.origin.test",))
            assert int(event.serial, 16) == x509.load_der_x509_certificate(answer.chain[0]).serial_number

    told(story())


def test_a_signer_has_time_for_others_between_two_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token may take a second for each: who signs all that are wanted at once seems to hang."""

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            between, answer = ["turn"], SignerDesk.answer

            def noted(*told: Any) -> Any:
                desk.loop.call_soon(between.append, "turn")
                between.append("signed")
                return answer(*told)

            monkeypatch.setattr(SignerDesk, "answer", noted)
            for number in range(5):
                gate.send(MintDecision(flow=f"f{number}", name=f"{number}.test"))
                worker.send(asked(f"f{number}", number))
            for _ in range(5):
                assert (await desk.heard(worker)).chain
            assert between[:10] == ["turn", "signed"] * 5

    told(story())


def test_all_workers_of_a_run_share_a_leaf_and_its_key_and_no_other_run_does(tmp_path: Path) -> None:
    """So a leaf is issued once for them, and one event tells of it."""

    async def story() -> None:
        async with started(tmp_path) as desk:
            answers = []
            for session in (SESSION, SESSION, "run-2"):
                gate, worker = desk.introduce(Role.GATE, session), desk.introduce(Role.WORKER, session)
                gate.send(MintDecision(flow=f"f{len(answers)}", name="www.origin.test"))
                answers.append(await desk.answer(worker, asked(f"f{len(answers)}")))
            first, second, other = answers
            assert (first.chain, first.key) == (second.chain, second.key)
            assert other.chain != first.chain
            assert other.key != first.key
            assert [(await desk.recorded()).flow for _ in range(2)] == ["f0", "f2"]

    told(story())


def test_a_gate_is_told_the_revocation_lists_at_once_and_when_the_ca_changes(tmp_path: Path) -> None:
    """Those of the CA that signs, which are empty: the root's, and its own."""

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate = desk.introduce(Role.GATE)
            told = await desk.heard(gate)
            assert isinstance(told, Crls)
            lists = [x509.load_der_x509_crl(der) for _, der in told.lists]
            root, issuing = (
                x509.load_pem_x509_certificate((tmp_path / "ca" / name).read_bytes())
                for name in ("root.pem", "issuing.pem")
            )
            assert [one.issuer for one in lists] == [root.subject, issuing.subject]
            assert [len(one) for one in lists] == [0, 0]
            shutil.rmtree(tmp_path / "ca")
            desk.signer.told(CaReload(), [])
            changed = await desk.heard(gate)
            assert {path for path, _ in changed.lists}.isdisjoint(path for path, _ in told.lists)

    told(story())


def test_a_question_that_overtakes_the_decision_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the gate takes within the patience; only one question a flow waits."""
    monkeypatch.setattr(module, "PATIENCE_S", 1000.0)

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            worker.send(asked("f", 1))
            worker.send(asked("f", 2))
            second = await desk.heard(worker)
            assert (second.number, second.chain) == (2, ())
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            first = await desk.heard(worker)
            assert (first.number, len(first.chain)) == (1, 2)
            assert desk.signer._sessions[SESSION].early == {}
            assert desk.signer._sessions[SESSION].workers[0].early == 0

    told(story())


def test_questions_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 1000.0)
    monkeypatch.setattr(module, "EARLY_LIMIT", 2)

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            for number in range(3):
                worker.send(asked(f"unknown{number}", number))
            assert (await desk.heard(worker)).number == 2
            gate.close()

    told(story())


@pytest.mark.checklist("K6")
def test_a_flow_that_nobody_decided_is_refused_and_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            desk.introduce(Role.GATE)
            worker = desk.introduce(Role.WORKER, worker=3)
            answer = await desk.answer(worker, asked("x" * 1000))
            assert answer.chain == ()
            assert "no decision" in answer.error
            fault = await desk.recorded()
            assert isinstance(fault, FaultSeen)
            assert (fault.what, fault.session, fault.flow) == ("certificate_refused", SESSION, None)
            assert "worker 3" in fault.detail
            assert len(fault.detail) < 200

    told(story())


def test_a_second_question_for_a_flow_is_refused_and_recorded_with_the_flow(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            assert (await desk.answer(worker, asked())).chain
            assert "already" in (await desk.answer(worker, asked())).error
            assert isinstance(await desk.recorded(), CertificateSeen)
            fault = await desk.recorded()
            assert (fault.what, fault.flow) == ("certificate_refused", "f")

    told(story())


def test_a_decision_of_one_run_is_of_no_use_to_another_runs_worker(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, stranger = desk.introduce(Role.GATE), desk.introduce(Role.WORKER, session="run-2")
            worker = desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            assert "no decision" in (await desk.answer(stranger, asked())).error
            assert (await desk.answer(worker, asked())).chain

    told(story())


def test_what_a_gate_decided_ends_with_it(tmp_path: Path) -> None:
    """Also when its end is only found while a question waits."""

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            gate.send(MintDecision(flow="g", name="www.origin.test"))
            assert (await desk.answer(worker, asked("f"))).chain
            gate.close()
            assert "no decision" in (await desk.answer(worker, asked("unknown"))).error
            assert "no decision" in (await desk.answer(worker, asked("g"))).error

    told(story())


def test_a_withdrawn_decision_is_of_no_use(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            gate.send(MintWithdrawn(flow="f"))
            gate.send(MintDecision(flow="g", name="www.origin.test"))
            assert (await desk.answer(worker, asked("g"))).chain
            assert "no decision" in (await desk.answer(worker, asked("f"))).error

    told(story())


def test_a_decision_that_cannot_be_is_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate = desk.introduce(Role.GATE)
            gate.send(MintDecision(flow="f", name="*.origin.test"))
            fault = await desk.recorded()
            assert (fault.what, fault.flow, fault.session) == ("decision_refused", "f", SESSION)

    told(story())


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role.WORKER, MintDecision(flow="f", name="evil.test")),
        (Role.WORKER, MintWithdrawn(flow="f")),
        (Role.GATE, asked()),
    ],
)
def test_a_channel_that_carries_what_it_must_not_is_ended(tmp_path: Path, role: Role, message: Message) -> None:
    """A worker cannot decide, and a gate cannot have a certificate."""

    async def story() -> None:
        async with started(tmp_path) as desk:
            channel = desk.introduce(role)
            channel.send(message)
            said = await desk.heard(channel)
            assert (await desk.heard(channel) if isinstance(said, Crls) else said) is None

    told(story())


@pytest.mark.parametrize("role", [Role.RECORDER, Role.SIGNER, Role.SUPERVISOR])
def test_nobody_else_has_a_channel(tmp_path: Path, role: Role) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            channel = desk.introduce(role)
            assert await desk.heard(channel) is None
            assert (await desk.recorded()).what == "unexpected_producer"
            assert desk.signer._sessions == {}

    told(story())


@pytest.mark.checklist("K6")
def test_a_worker_that_asks_too_often_is_refused_without_a_flood_of_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers are not touched by it, and refusals that were not recorded one by one are counted."""
    monkeypatch.setattr(module, "QUESTIONS_PER_S", 0.0)
    monkeypatch.setattr(module, "QUESTIONS_BURST", 5.0)
    monkeypatch.setattr(module, "REFUSALS_PER_S", 0.0)
    monkeypatch.setattr(module, "REFUSALS_BURST", 2.0)

    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker, other = (desk.introduce(role) for role in (Role.GATE, Role.WORKER, Role.WORKER))
            errors = [(await desk.answer(worker, asked("unknown", number))).error for number in range(20)]
            assert [error == "too many questions" for error in errors] == [False] * 5 + [True] * 15
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            assert (await desk.answer(other, asked())).chain
            events = [await desk.recorded() for _ in range(3)]
            assert [type(event) for event in events] == [FaultSeen, FaultSeen, CertificateSeen]

    told(story())


def test_refusals_that_were_held_back_are_counted_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSALS_BURST", 1.0)
    monkeypatch.setattr(module, "REFUSALS_PER_S", 0.0)

    async def story() -> None:
        async with started(tmp_path) as desk:
            desk.introduce(Role.GATE)
            worker = desk.introduce(Role.WORKER)
            for number in range(4):
                await desk.answer(worker, asked("unknown", number))
            assert (await desk.recorded()).count == 1
            monkeypatch.setattr(Allowance, "spend", lambda self, now_s: True)
            await desk.answer(worker, asked("unknown"))
            assert (await desk.recorded()).count == 4

    told(story())


@pytest.mark.checklist("K5")
def test_nothing_is_issued_once_the_recorder_has_gone(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            gate.send(MintDecision(flow="f", name="www.origin.test"))
            recorder = desk.signer._recorder
            assert recorder is not None
            desk.recorder.close()
            await recorder.flushed()
            while not recorder.gone:
                await asyncio.sleep(0)
            answer = await desk.answer(worker, asked())
            assert answer.chain == ()
            assert "off the record" in answer.error

    told(story())


def test_a_worker_that_never_reads_its_answers_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded."""
    monkeypatch.setattr("mitmsec.channel.QUEUE_LIMIT", 4)
    monkeypatch.setattr(module, "QUESTIONS_BURST", 1e9)
    monkeypatch.setattr(module, "REFUSALS_BURST", 0.0)

    async def story() -> None:
        async with started(tmp_path) as desk:
            ours, theirs = pair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            desk.signer.told(ProducerUp(role=Role.WORKER, session=SESSION, worker=0), [theirs.detach()])
            packet = MintQuestion(number=1, flow="f")
            worker = Channel(ours, [MintAnswer])
            while desk.signer._sessions:
                worker.send(packet)
                await asyncio.sleep(0)
            assert desk.signer._sessions == {}

    told(story())


def test_sessions_are_forgotten_with_their_last_channel(tmp_path: Path) -> None:
    async def story() -> None:
        async with started(tmp_path) as desk:
            gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
            other = desk.introduce(Role.WORKER, session="run-2")
            gate.close()
            worker.close()
            await desk.answer(other, asked())
            await desk.answer(other, asked())
            assert list(desk.signer._sessions) == ["run-2"]

    told(story())


def test_a_ca_that_cannot_be_used_is_told_to_the_supervisor_and_serves_nobody(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca").chmod(0o777)

    async def story() -> None:
        control, _keep = pair()
        ours, theirs = pair()
        signer = Signer(Channel(control, [SignerSettings]))
        answer = await signer.start(SignerSettings(folder=str(tmp_path / "ca")), [theirs.detach()])
        assert isinstance(answer, Fault)
        assert answer.what == "ca_refused"
        assert "mode 0777" in answer.detail
        desk = Desk(signer, Channel(ours, [FaultSeen]))
        assert await desk.heard(desk.introduce(Role.WORKER)) is None
        await signer.stop()

    told(story())


def test_a_ca_that_was_changed_signs_from_then_on_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    """The sessions go on; a flow that was decided before gets its leaf from the new one."""

    async def story() -> None:
        control, supervisor = pair()
        ours, theirs = pair()
        signer, said = Signer(Channel(control, [SignerSettings])), Channel(supervisor, [SignerReady, Fault])
        first = await signer.start(SignerSettings(folder=str(tmp_path / "ca")), [theirs.detach()])
        assert isinstance(first, SignerReady)
        desk = Desk(signer, Channel(ours, [CertificateSeen, FaultSeen]))
        gate, worker = desk.introduce(Role.GATE), desk.introduce(Role.WORKER)
        gate.send(MintDecision(flow="f", name="www.origin.test"))
        (tmp_path / "ca" / "issuing.key").chmod(0o644)
        signer.told(CaReload(), [])
        refused = await desk.heard(said)
        assert isinstance(refused, Fault)
        assert "mode 0644" in refused.detail
        assert len((await desk.answer(worker, asked("f"))).chain) == 2
        shutil.rmtree(tmp_path / "ca")
        gate.send(MintDecision(flow="g", name="www.origin.test"))
        signer.told(CaReload(), [])
        second = await desk.heard(said)
        assert isinstance(second, SignerReady)
        assert second.root_pem != first.root_pem
        answer = await desk.answer(worker, asked("g"))
        assert ssl.DER_cert_to_PEM_cert(answer.chain[1]) == second.issuing_pem
        desk.recorder.close()
        await signer.stop()

    told(story())


def test_that_a_ca_ends_soon_is_recorded_at_the_start_and_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitmsec_certs.keystore.ENDS_SOON_S", 10**9)
    monkeypatch.setattr("mitmsec.service.signer.REMINDED_S", 0.01)

    async def story() -> None:
        async with started(tmp_path) as desk:
            for _ in range(3):
                fault = await desk.recorded()
                assert fault.what == "ca_ends_soon"
                assert "mitmsec root" in fault.detail

    told(story())


def test_the_real_process_serves_until_its_control_channel_ends(tmp_path: Path) -> None:
    """Settings, a gate, a worker, an event; the end of file; exit status 0. And what it has loaded."""
    ours, theirs = pair()
    recorder_ours, recorder_theirs = pair()
    command = [sys.executable, "-m", "mitmsec.service", "signer", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    control = Channel(ours, [SignerReady, ModulesAnswer, Fault])
    try:
        ready = _exchanged(control, SignerSettings(folder=str(tmp_path / "ca")), recorder_theirs.fileno())
        assert isinstance(ready, SignerReady)
        assert ready.created
        root = x509.load_pem_x509_certificate(ready.root_pem.encode())
        assert ready.subject == root.subject.rfc4514_string()
        assert ready.not_after == root.not_valid_after_utc.isoformat().replace("+00:00", "Z")
        recorder_theirs.close()
        gate, worker = (_introduced(control, role) for role in (Role.GATE, Role.WORKER))
        gate.send(MintDecision(flow="f", name="192.0.2.7"))
        answer = _exchanged(worker, asked())
        assert len(answer.chain) == 2
        recorder = Channel(recorder_ours, [CertificateSeen])
        event = _exchanged(recorder, None)
        assert isinstance(event, Seen)
        modules = _exchanged(control, ModulesQuestion()).modules
        assert "mitmsec_certs.keystore" in modules
        assert not {"mitmproxy", "OpenSSL", "psutil", "pydivert", "sqlite3"} & set(modules)
        recorder.send(Committed(count=1))
        control.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert stat.S_IMODE(os.stat(tmp_path / "ca" / "issuing.key").st_mode) == 0o600


def _introduced(control: Channel, role: Role) -> Channel:
    ours, theirs = pair()
    control.send(ProducerUp(role=role, session=SESSION, worker=0), theirs.fileno())
    theirs.close()
    return Channel(ours, [MintAnswer])


def _exchanged(channel: Channel, message: Message | None, *fds: int) -> Any:
    received = channel.exchange(message, *fds, timeout_s=20)
    assert received is not None
    return received[0]


@pytest.mark.checklist("K2")
def test_a_signer_that_is_made_to_crash_leaves_no_dump_and_no_word_of_its_key(tmp_path: Path) -> None:
    """Another process that is ended in the same way does leave one, where this machine writes any."""

    def unlimited() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)

    def crashed(process: subprocess.Popen[bytes]) -> bool:
        """Whether the kernel has dumped it."""
        os.kill(process.pid, signal.SIGABRT)
        return os.WCOREDUMP(os.waitpid(process.pid, 0)[1])

    ours, theirs = pair()
    recorder_ours, recorder_theirs = pair()
    command = [sys.executable, "-m", "mitmsec.service", "signer", str(theirs.fileno())]
    options = {"cwd": tmp_path, "preexec_fn": unlimited, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **options)  # type: ignore[call-overload]
    control = Channel(ours, [SignerReady, Fault])
    ready = _exchanged(control, SignerSettings(folder=str(tmp_path / "ca")), recorder_theirs.fileno())
    assert isinstance(ready, SignerReady)
    assert not crashed(process)
    pem = (tmp_path / "ca" / "issuing.key").read_bytes()
    said = process.stdout.read() + process.stderr.read()
    assert not any(line in said for line in pem.splitlines()[1:-1])
    waiting = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, **options) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == b"up\n"
        dumps = crashed(other)
        other.returncode = 0
    if not dumps:
        pytest.skip("this machine dumps no process, so that one is not dumped shows nothing")
    control.close()
    recorder_ours.close()
    recorder_theirs.close()
    theirs.close()
