"""Signer and recorder: the two children that all runs of a supervisor share, and what puts things right when one dies.

recorder dies ─► every run's gate is silenced (the hooks follow `on_failure`) ─► new recorder, new signer ─┐
signer dies   ─► the same                                                     ─► new signer ──────────────┤
either hangs  ─► it is ended                                                                              │
                                   (again and again, until it works)
                                                                every run: capture told anew, `rebuild` ◄─┘
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from mitmsec.audit.event import CaSeen, FaultSeen, Seen
from mitmsec.audit.producer import Producer
from mitmsec.channel import close_all
from mitmsec.core.content_orders import ANSWERS
from mitmsec.core.messages import (
    CaptureOpen,
    CaReload,
    Fault,
    ProducerUp,
    Ready,
    RecorderSettings,
    Role,
    SessionFlush,
    SessionFlushed,
    SignerReady,
    SignerSettings,
)
from mitmsec.core.policy import Policy
from mitmsec.service import ca_journal, notices, sealing, token_ground
from mitmsec.service.accounts import account_of
from mitmsec.service.background import Background, for_ever
from mitmsec.service.children import ChildFailed, ChildProcess, introduce
from mitmsec.service.content_line import ContentLine
from mitmsec.service.gate_and_workers import begun
from mitmsec.service.jail import Jail, spawn
from mitmsec.service.policy_versions import PolicyVersions
from mitmsec.service.pulse import HANGS_S, Pulse
from mitmsec.service.seal_keeper import SealFailed
from mitmsec.service.session import Session
from mitmsec.service.state import State
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.processes import ProcessTable

FLUSH_DEADLINE_S = 15.0
LOOK_S = 0.5  # at the pulse of signer and recorder
REPLACE_PAUSE_S, REPLACE_PAUSE_LIMIT_S = 2.0, 10.0
CA_DEADLINE_S = 10.0
MENDED_DEADLINE_S = 25.0  # a run's end waits no longer for what cannot be replaced
RECORDER_GRACE_S = 25.0  # more than it takes itself for its producers and the disk


class Backbone:
    """What the runs in `sessions` stand on (mitmsec.service.session.Shared). One loop, one thread."""

    def __init__(self, state: State, log: Callable[[str], None]) -> None:
        self.state, self.log = state, log
        self._paths = ExecutablePaths()
        self.processes = ProcessTable(paths=self._paths)
        self.sessions: dict[str, Session] = {}
        self._policies = PolicyVersions(state.policies)
        self.off = False
        self.switching = asyncio.Lock()
        self.root_pem = self.own_pem = ""
        self._created: CaSeen | None = None  # the CA that our signer has made, until that is on record
        self.content = ContentLine(lambda: self._recorder)
        self._producer: Producer | None = None
        self._recorder: ChildProcess | None = None
        self._signer: ChildProcess | None = None
        self._worker: ChildProcess | None = None
        self._flushes: dict[str, asyncio.Future[SessionFlushed]] = {}
        self._hung: set[Role] = set()  # ended for it, and not on record yet
        self._pulses: dict[ChildProcess, Pulse] = {}  # of those that serve
        self._background = Background()
        self._adopting = asyncio.Lock()
        self._stopping = False
        self._mending: set[asyncio.Task[None]] = set()
        self._mending_lock = asyncio.Lock()

    # -- begin and end -------------------------------------------------------------------------------------------------
    async def start(self, *, worker: bool) -> None:
        """With `worker`, one that somebody will want at once: it takes longest.

        Raises ChildFailed with what the operator should know.
        """
        if worker:
            self._worker = begun(self, Role.WORKER)
        await asyncio.gather(self._start_recorder(), self._start_signer())
        await self.record_ca_operations()
        self._background.begin(for_ever(self._look, traceback.print_exception))

    def _start_recorder(self) -> Awaitable[None]:
        """Spawned and told its settings now, so that producers may be introduced; ready when awaited."""
        folder, quarantine = str(self.state.log), str(self.state.quarantine)
        recorder = self._recorder = self._spawn(Role.RECORDER, self.state.log, further=quarantine)
        ready = recorder.start(RecorderSettings(folder=folder, quarantine=quarantine))
        self._producer = Producer(self.recorder_channel(Role.SUPERVISOR, ""), asyncio.get_running_loop())

        async def finish() -> None:
            await _ready(recorder, ready)
            recorder.on_message = self._recorder_said
            recorder.watch(lambda status: self._died(Role.RECORDER, status))

        return finish()

    async def _start_signer(self) -> None:
        try:
            with sealing.descriptors(self.state) as opens:
                shows = token_ground.modules_of(self.state).shows
                signer = self._signer = self._spawn(Role.SIGNER, self.state.ca, shows)
                with self.recorder_channel(Role.SIGNER, "") as recorder:
                    ready = signer.start(SignerSettings(folder=str(self.state.ca)), recorder.fileno(), *opens)
        except (SealFailed, token_ground.ModulesRefused) as error:
            raise ChildFailed(f"ca_refused: {error}") from None
        answer = await _ready(signer, ready)
        assert isinstance(answer, SignerReady)
        signer.watch(lambda status: self._died(Role.SIGNER, status))
        self.root_pem, self.own_pem = answer.root_pem, answer.own_pem
        if answer.created:
            self._created = CaSeen(
                operation="created", subject=answer.subject, sha256=answer.sha256, not_after=answer.not_after
            )

    async def adopt_ca(self) -> None:
        """Have the signer read the CA's files again, and record what was done to them. Raises ChildFailed, OSError."""
        async with self._adopting:
            if token_ground.modules_of(self.state) != token_ground.NOTHING:
                await self._begin_signer_anew()
                return await self.record_ca_operations()
            answer = await self._reloaded()
            if isinstance(answer, Fault):
                raise ChildFailed(f"{answer.what}: {answer.detail}")
            self.root_pem, self.own_pem = answer.root_pem, answer.own_pem
            await self.record_ca_operations()

    async def _begin_signer_anew(self) -> None:
        """A token is met once in a process's life: what it sees, threads of its module. Runs pause as when it dies."""
        if self._signer is not None and not self._signer.ended.done():
            await self._signer.stop()
            self._died(Role.SIGNER, self._signer.ended.result())
        await self.mended()
        if _has_ended(self._signer):
            raise ChildFailed("the signer cannot use the CA as it is now; supervisor.log says why")

    async def _reloaded(self) -> SignerReady | Fault:
        signer = self._signer
        if signer is None or signer.ended.done():
            raise ChildFailed("the signer is not running")
        answer: asyncio.Future[SignerReady | Fault] = asyncio.get_running_loop().create_future()
        signer.on_message = lambda message, fds: _heard_once(answer, message, fds)
        with sealing.descriptors(self.state) as opens:
            signer.channel.send(CaReload(), *opens)
        async with asyncio.timeout(CA_DEADLINE_S):
            await asyncio.wait((answer, signer.ended), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ChildFailed("the signer ended while it read the CA")
        return answer.result()

    async def record_ca_operations(self) -> None:
        """What commands did to the CA goes on record; it is forgotten only once it is on disk.

        Then, that the signer has made another: after the one before was removed.
        """
        done = ca_journal.left(self.state)
        for seen in done:
            self.record(seen)
        if self._created is not None:
            self.record(self._created)
            self._created = None
        if done and self._producer is not None:
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                await self._producer.flushed()
            ca_journal.forget(self.state, len(done))

    def _spawn(
        self, role: Role, folder: Path, shows: tuple[str, ...] = (), *, further: str | None = None
    ) -> ChildProcess:
        jail = Jail(
            role=role,
            account=account_of(role),
            mountpoint=str(self.state.jail),
            folder=str(folder),
            further=further,
            shows=shows,
        )
        return ChildProcess(role, partial(spawn, jail), self.log, [Ready, SignerReady, SessionFlushed, Fault, *ANSWERS])

    def is_nobodys(self, label: str) -> bool:
        """No session of ours has it, and no command of an earlier supervisor lives under it."""
        return label.rpartition("-")[2] not in self.sessions and not (cgroup2_root() / label).exists()

    async def stop(self) -> None:
        """End signer and recorder; every event is committed."""
        self._stopping = True
        self._background.cancel()
        for task in self._mending:
            task.cancel()
        if self._worker is not None:
            await self._worker.stop()
        if self._signer is not None:
            await self._signer.stop()
        if self._producer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_DEADLINE_S):
                    await self._producer.flushed()
            self._producer.close()
        if self._recorder is not None:
            await self._recorder.stop(grace_s=RECORDER_GRACE_S)
        self.processes.close()
        self._paths.close()

    @property
    def children(self) -> list[ChildProcess]:
        """Signer, recorder and the worker that waits, as far as they run."""
        return [child for child in (self._recorder, self._signer, self._worker) if child is not None]

    # -- what a session asks for ---------------------------------------------------------------------------------------
    def begun_worker(self) -> ChildProcess:
        """One that waits for its settings: the caller's from now on. Raises OSError."""
        worker, self._worker = self._worker, None
        return begun(self, Role.WORKER) if worker is None or worker.ended.done() else worker

    def recorder_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket:
        """The producer's end of a new channel to the recorder, which knows it as `role` of `session`."""
        return introduce(self._recorder, ProducerUp(role=role, session=session, worker=worker))

    def signer_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket:
        return introduce(self._signer, ProducerUp(role=role, session=session, worker=worker))

    def record(self, seen: Seen) -> None:
        if self._producer is not None:
            self._producer.record(seen)

    async def recorded(self, seen: Seen) -> bool:
        """Record it; whether it is on disk now."""
        if self._producer is None:
            return False
        before = self._producer.lost
        self._producer.record(seen)
        try:
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                await self._producer.flushed()
        except TimeoutError:
            return False
        return not self._producer.gone and self._producer.lost == before

    def open_capture(self, session: Session) -> None:
        """Tell the recorder, and after its death the next one, where the session's packets go."""
        if session.capture_fd is not None and self._recorder is not None:
            order = CaptureOpen(session=session.name, command=session.program)
            self._recorder.channel.send(order, session.capture_fd)

    async def flush(self, session: str) -> SessionFlushed | None:
        """The counts once everything of `session` is on disk; None if the recorder does not confirm it."""
        if self._recorder is None or self._producer is None or self._recorder.ended.done():
            return None
        waiting: asyncio.Future[SessionFlushed] = asyncio.get_running_loop().create_future()
        self._flushes[session] = waiting
        try:
            async with asyncio.timeout(FLUSH_DEADLINE_S):
                await self._producer.flushed()
                self._recorder.channel.send(SessionFlush(session=session))
                await asyncio.wait((waiting,))
                return None if waiting.cancelled() else waiting.result()
        except TimeoutError:
            print(f"the recorder did not confirm the events of run {session}", file=sys.stderr)
            return None
        finally:
            self._flushes.pop(session, None)

    def _recorder_said(self, message: object, fds: list[int]) -> None:
        close_all(fds)
        if isinstance(message, SessionFlushed) and (waiting := self._flushes.pop(message.session, None)):
            if not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, Fault):
            print(f"recorder: {message.what}: {message.detail}", file=sys.stderr)
        self.content.heard(message)

    # -- deaths --------------------------------------------------------------------------------------------------------
    async def _look(self) -> None:
        """End whichever of signer and recorder hangs: its exit is told and mended like any other."""
        await asyncio.sleep(LOOK_S)
        served, self._pulses = self._pulses, {}
        for child in (self._recorder, self._signer):
            if child is None or not child.ask_for_beat():
                continue
            pulse = self._pulses[child] = served.get(child) or Pulse()
            if pulse.hangs(child.beats, time.monotonic()):
                print(f"the {child.role} hangs", file=sys.stderr)
                self._hung.add(child.role)
                child.kill()

    def _died(self, role: Role, status: int) -> None:
        if self._stopping:
            return
        print(f"the {role} ended with status {status}", file=sys.stderr)
        for session in self.sessions.values():
            session.silence()
        for waiting in self._flushes.values():
            waiting.cancel()
        self._flushes.clear()
        task = asyncio.create_task(self._mend(role, status))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _mend(self, role: Role, status: int) -> None:
        """A new recorder means a new signer too (its channel to the recorder is gone); then every session anew."""
        async with self._mending_lock:
            told, pause_s = "", REPLACE_PAUSE_S
            while (why := await self._replace()) is not None:
                if why != told:  # a token may be away for days
                    print(f"the {role} could not be replaced: {why!r}", file=sys.stderr)
                    self._fault(f"{role}_not_replaced", why)
                await asyncio.sleep(pause_s)
                told, pause_s = why, min(pause_s + REPLACE_PAUSE_S, REPLACE_PAUSE_LIMIT_S)
            if role in self._hung:
                self._hung.discard(role)
                self._fault(f"{role}_hangs", f"no answer for {HANGS_S:.0f} s")
            self._fault(f"{role}_died", f"status {status}")
            for session in list(self.sessions.values()):
                self.open_capture(session)
                await session.rebuild()

    async def _replace(self) -> str | None:
        """Start what has ended; why that failed, if it did."""
        try:
            if _has_ended(self._recorder):
                if self._signer is not None:
                    await self._signer.stop()
                await self._start_recorder()
            if _has_ended(self._signer):
                await self._start_signer()
        except (ChildFailed, OSError) as error:
            return str(error)
        return None

    async def keep_policy(self, policy: Policy) -> None:
        """This version can be had as long as the log that names it; what had to go for it is on record.

        Raises OSError.
        """
        in_force = {session.policy.fingerprint for session in self.sessions.values()}
        for gone in await asyncio.to_thread(self._policies.keep, policy, in_force):
            detail = f"{gone}, which was loaded longest ago: decisions made by it cannot be explained any more"
            self.record(FaultSeen(what="policy_dropped", detail=detail))
        notices.put_up(self.state, policy)

    def _fault(self, what: str, detail: str) -> None:
        """It went the way that each run's own policy says."""
        for session in self.sessions.values():
            failed = session.policy.on_failure
            self.record(FaultSeen(what=what, detail=detail, failed=failed, session=session.name))

    async def mended(self) -> None:
        """Until nothing is being put right, or for MENDED_DEADLINE_S."""
        if self._mending:
            await asyncio.wait(set(self._mending), timeout=MENDED_DEADLINE_S)


async def _ready(child: ChildProcess, answer: Awaitable[Any]) -> object:
    """The child's first answer. Raises ChildFailed; then the child has ended."""
    try:
        said = await answer
        if isinstance(said, Fault):
            raise ChildFailed(f"{said.what}: {said.detail}")
        return said
    except ChildFailed:
        child.kill()
        await child.ended
        raise


def _heard_once(answer: asyncio.Future[Any], message: object, fds: list[int]) -> None:
    close_all(fds)
    if not answer.done():
        answer.set_result(message)


def _has_ended(child: ChildProcess | None) -> bool:
    return child is None or child.ended.done()
