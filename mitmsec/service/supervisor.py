"""The supervisor: the only process with privilege. One a state directory, alive while a run is.

It starts signer and recorder, opens a session for each run, answers whose a connection is, and puts right what dies.
It never sees a byte of traffic and never holds a key. Started by `mitmsec run`; arguments: state directory, descriptor
on which the first line says `ready` or what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

from mitmsec import __version__, channel
from mitmsec.audit.event import CaSeen, FaultSeen, Seen, ServiceSeen
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, close_all
from mitmsec.core.messages import (
    CaptureOpen,
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
from mitmsec.service import control
from mitmsec.service.accounts import account_of, readers_gid
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.jail import Jail
from mitmsec.service.leftovers import reap
from mitmsec.service.session import Session
from mitmsec.service.state import State, StateBusy
from mitmsec_redirect import bpffs
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.processes import ProcessTable

LOCK_WAIT_S = 10.0
FLUSH_DEADLINE_S = 15.0
RECORDER_GRACE_S = 25.0  # more than it takes itself for its producers and the disk


class Supervisor:
    """Owns signer, recorder and sessions. Everything happens on one loop in one thread."""

    def __init__(self, state: State, log: int) -> None:
        self.state, self.log = state, log
        self.processes = ProcessTable()
        self.sessions: dict[str, Session] = {}
        self.root_pem = ""
        self._producer: Producer | None = None
        self._recorder: ChildProcess | None = None
        self._signer: ChildProcess | None = None
        self._flushes: dict[str, asyncio.Future[SessionFlushed]] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._stopping = False
        self._mending: set[asyncio.Task[None]] = set()
        self._mending_lock = asyncio.Lock()

    # -- signer and recorder -------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Raises ChildFailed with what the operator should know."""
        await asyncio.gather(self._start_recorder(), self._start_signer())

    def _start_recorder(self) -> Awaitable[None]:
        """Spawned and told its settings now, so that producers may be introduced; ready when awaited."""
        recorder = self._recorder = self._spawn(Role.RECORDER, self.state.log)
        ready = recorder.start(RecorderSettings(folder=str(self.state.log)))
        self._producer = Producer(self.recorder_channel(Role.SUPERVISOR, ""), asyncio.get_running_loop())

        async def finish() -> None:
            await ready
            recorder.on_message = self._recorder_said
            recorder.on_exit = lambda status: self._died(Role.RECORDER, status)

        return finish()

    async def _start_signer(self) -> None:
        signer = self._signer = self._spawn(Role.SIGNER, self.state.ca)
        with self.recorder_channel(Role.SIGNER, "") as recorder:
            ready = signer.start(SignerSettings(folder=str(self.state.ca)), recorder.fileno())
        answer = await ready
        if isinstance(answer, Fault):
            raise ChildFailed(f"{answer.what}: {answer.detail}")
        assert isinstance(answer, SignerReady)
        signer.on_exit = lambda status: self._died(Role.SIGNER, status)
        self.root_pem = answer.root_pem
        if answer.created:
            self.record(
                CaSeen(operation="created", subject=answer.subject, sha256=answer.sha256, not_after=answer.not_after)
            )

    def _spawn(self, role: Role, folder: Path) -> ChildProcess:
        jail = Jail(role=role, account=account_of(role), mountpoint=str(self.state.jail), folder=str(folder))
        return ChildProcess(jail, self.log, [Ready, SignerReady, SessionFlushed, Fault])

    def recorder_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket:
        """The producer's end of a new channel to the recorder, which knows it as `role` of `session`."""
        return _introduce(self._recorder, ProducerUp(role=role, session=session, worker=worker))

    def signer_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket:
        return _introduce(self._signer, ProducerUp(role=role, session=session, worker=worker))

    def record(self, seen: Seen) -> None:
        if self._producer is not None:
            self._producer.record(seen)

    def _recorder_said(self, message: object, fds: list[int]) -> None:
        close_all(fds)
        if isinstance(message, SessionFlushed) and (waiting := self._flushes.pop(message.session, None)):
            waiting.set_result(message)
        elif isinstance(message, Fault):
            print(f"recorder: {message.what}: {message.detail}", file=sys.stderr)

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
            try:
                if role is Role.RECORDER and _has_ended(self._recorder):
                    if self._signer is not None:
                        await self._signer.stop()
                    await self._start_recorder()
                if _has_ended(self._signer):
                    await self._start_signer()
            except (ChildFailed, OSError) as error:
                print(f"the {role} could not be replaced: {error}", file=sys.stderr)
                return
            for session in list(self.sessions.values()):
                self.record(
                    FaultSeen(
                        what=f"{role}_died",
                        detail=f"status {status}",
                        failed=session.policy.on_failure,
                        session=session.name,
                    )
                )
                self._open_capture(session)
                await session.rebuild()

    # -- runs ----------------------------------------------------------------------------------------------------------
    async def serve(self, listener: socket.socket) -> None:
        """Until the last run has gone, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._idle.set)
        loop.add_reader(listener, self._accept, listener)
        await self._idle.wait()
        loop.remove_reader(listener)
        self.state.control.unlink(missing_ok=True)
        for task in self._clients:
            task.cancel()
        for session in list(self.sessions.values()):
            if session.must_stay_closed:
                await session.abandon()
            else:
                await self._end(session, home=None, status=None)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            pid, uid = control.peer(sock)
            if uid != 0:
                sock.close()
                return
            task = asyncio.create_task(self._client(sock, pid))
            self._clients.add(task)
            task.add_done_callback(self._client_gone)

    def _client_gone(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)
        if not self._clients and not self.sessions:
            self._idle.set()

    async def _client(self, sock: socket.socket, pid: int) -> None:
        inbox: asyncio.Queue[tuple[Any, list[int]] | None] = asyncio.Queue()
        client = Channel(sock, control.FROM_RUN)
        client.attach(
            asyncio.get_running_loop(),
            lambda message, fds: inbox.put_nowait((message, fds)),
            lambda: inbox.put_nowait(None),
        )
        home = _cgroup_of(pid)
        session: Session | None = None
        try:
            while (item := await inbox.get()) is not None:
                message, fds = item
                match message:
                    case control.OpenRun() if session is None:
                        session = await self._open(client, message, fds)
                    case control.CommandEnded(status=status, wait=wait) if session is not None:
                        if wait:
                            await session.until_empty()
                        ending, session = session, None
                        client.send(await self._end(ending, home=home, status=status))
                    case control.StatusQuestion():
                        client.send(await self._status())
                    case _:
                        close_all(fds)
            if session is not None:  # the front-end is gone: what it promised the command still holds
                await session.until_empty()
                await self._end(session, home=home, status=None)
        finally:
            client.close()

    async def _open(self, client: Channel, order: control.OpenRun, fds: list[int]) -> Session | None:
        session = None
        try:
            session = Session(self, secrets.token_hex(4), order, fds)
            self.sessions[session.name] = session
            self._open_capture(session)
            await session.open(order.user)
        except Exception as error:
            traceback.print_exc()
            if session is not None:
                await self._end(session, home=None, status=None)
            client.send(_refusal(error))
            return None
        assert session.cgroup is not None
        client.send(
            control.RunOpened(
                session=session.name,
                cgroup=str(session.cgroup.path),
                folder=str(session.folder),
                root_pem=self.root_pem,
            )
        )
        return session

    def _open_capture(self, session: Session) -> None:
        """Tell the recorder, and after its death the next one, where the session's packets go."""
        if session.capture_fd is not None and self._recorder is not None:
            order = CaptureOpen(session=session.name, command=session.order.program)
            self._recorder.channel.send(order, session.capture_fd)

    async def _end(self, session: Session, *, home: str | None, status: int | None) -> control.RunClosed:
        if self._mending:
            await asyncio.wait(set(self._mending))
        survivors = await session.close(home=home)
        detail = f"{survivors} processes live on, no longer diverted" if survivors else ""
        self.record(
            ServiceSeen(
                operation="run_ended",
                session=session.name,
                detail=detail,
                command=(session.order.program,),
                status=status,
            )
        )
        flushed = await self._flush(session.name)
        counts = flushed or SessionFlushed(session=session.name)
        self.sessions.pop(session.name, None)
        return control.RunClosed(
            committed=flushed is not None,
            connections=counts.connections,
            requests=counts.requests,
            findings=counts.findings,
            faults=counts.faults,
            cut=session.cut,
            survivors=survivors,
        )

    async def _flush(self, session: str) -> SessionFlushed | None:
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

    async def _status(self) -> control.StatusAnswer:
        shared = [child for child in (self._recorder, self._signer) if child is not None]
        rows: list[tuple[ChildProcess, str]] = [(child, "") for child in shared]
        for session in self.sessions.values():
            rows += [(child, session.name) for child in (session.gate, *session.workers.values()) if child]
        own = (os.getpid(), tuple(sorted(sys.modules)))
        return control.StatusAnswer(
            sessions=tuple(
                (session.name, session.order.program, str(session.cgroup.path if session.cgroup else ""))
                for session in self.sessions.values()
            ),
            processes=tuple((str(child.role), child.pid, name) for child, name in rows),
            modules=(own, *[(child.pid, await child.modules()) for child, _ in rows]),
        )

    async def stop(self) -> None:
        """End signer and recorder; every event is committed."""
        self._stopping = True
        for task in self._mending:
            task.cancel()
        if self._signer is not None:
            await self._signer.stop()
        if self._producer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_DEADLINE_S):
                    await self._producer.flushed()
            self._producer.close()
        if self._recorder is not None:
            await self._recorder.stop(grace_s=RECORDER_GRACE_S)
        with contextlib.suppress(OSError):  # pins of an earlier supervisor's command keep it
            if bpffs.is_mounted(self.state.bpf) and not any(self.state.bpf.iterdir()):
                bpffs.unmount(self.state.bpf)


def _has_ended(child: ChildProcess | None) -> bool:
    return child is None or child.ended.done()


def _introduce(to: ChildProcess | None, message: ProducerUp) -> socket.socket:
    if to is None:
        raise ChildFailed("the recorder or signer is not running")
    ours, theirs = channel.pair()
    with theirs:
        to.channel.send(message, theirs.fileno())
    return ours


def _cgroup_of(pid: int) -> str | None:
    """The cgroup v2 path of a process, as /proc says."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return None


def _refusal(error: Exception) -> control.Refused:
    if isinstance(error, EbpfUnavailable):
        return control.Refused(error=error.reason, remedy=error.remedy, status=3)
    return control.Refused(
        error=str(error), remedy="the supervisor's log in STATE/run/supervisor.log says more", status=125
    )


async def _main(state: State, ready: int) -> None:
    log = os.dup(2)
    supervisor = Supervisor(state, log)
    listener = control.listen(state.control, readers_gid())
    try:
        reap(state)
        await supervisor.start()
        os.write(ready, b"ready\n")
    except (ChildFailed, OSError) as error:
        os.write(ready, f"{error}\n".encode())
        await supervisor.stop()
        raise
    finally:
        os.close(ready)
    try:
        await supervisor.serve(listener)
    finally:
        await supervisor.stop()
        listener.close()


def _run(work: Coroutine[Any, Any, None]) -> int:
    try:
        asyncio.run(work)
    except (ChildFailed, OSError):
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    """Entry point of the process."""
    state, ready = State(Path(sys.argv[1])), int(sys.argv[2])
    os.set_inheritable(ready, False)
    print(f"mitmsec {__version__} supervisor, pid {os.getpid()}", file=sys.stderr)
    try:
        state.hold()
    except StateBusy:
        os.write(ready, b"busy\n")
        return 1
    return _run(_main(state, ready))


if __name__ == "__main__":
    sys.exit(main())
