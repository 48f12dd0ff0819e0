"""The supervisor: the only process with privilege. One a state directory, alive while a run or the service is.

It starts signer and recorder, opens a session for each run and for the service, answers whose a connection is, and puts
right what dies. It never sees a byte of traffic and never holds a key. Started by `mitmsec run` or `mitmsec start`;
arguments: state directory, descriptor on which the first line says `ready` or what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from mitmsec import __version__
from mitmsec.audit.event import FaultSeen, ServiceSeen
from mitmsec.channel import Channel, close_all
from mitmsec.core.messages import Role, SessionFlushed
from mitmsec.service import control, unrecorded
from mitmsec.service.accounts import readers_gid
from mitmsec.service.backbone import Backbone
from mitmsec.service.childlog import LogFile, OwnWords
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.divert_backend import DivertBackend
from mitmsec.service.hangup import Hangup
from mitmsec.service.leftovers import reap, succeed
from mitmsec.service.orders import ServiceOrders, refusal
from mitmsec.service.session import Session
from mitmsec.service.state import State, StateBusy
from mitmsec_redirect import bpffs
from mitmsec_redirect.cgroup import home_of
from mitmsec_redirect.owner import user_name


class Supervisor:
    """Owns the backbone and the runs on it. Everything happens on one loop in one thread.

    SIGHUP has the service's policy read again.
    """

    def __init__(self, state: State, log: LogFile) -> None:
        self.state = state
        self.backbone = Backbone(state, log.write)
        self.sessions = self.backbone.sessions
        self._clients: set[asyncio.Task[None]] = set()
        self._ends: dict[str, asyncio.Task[control.RunClosed]] = {}
        self._idle = asyncio.Event()
        self._told_to_end = False
        self._hangup = Hangup(state.folder, self._service, self.backbone.record, log.write)

    async def serve(self, listener: socket.socket) -> None:
        """Until the last run has gone, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end_now)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.heard)
        loop.add_reader(listener, self._accept, listener)
        while not self._told_to_end:
            await self._idle.wait()
            if not self._clients and not self.sessions:
                break
            self._idle.clear()  # somebody came in the meantime
        loop.remove_reader(listener)
        self.state.control.unlink(missing_ok=True)
        for task in self._clients:
            task.cancel()
        for session in list(self.sessions.values()):
            if session.must_stay_closed:
                await session.abandon()
            else:
                await self.end(session, home=None, status=None)

    def _service(self) -> Session | None:
        return next((session for session in self.sessions.values() if session.is_service), None)

    def _end_now(self) -> None:
        self._told_to_end = True
        self._idle.set()

    # -- who calls -----------------------------------------------------------------------------------------------------
    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            task = asyncio.create_task(self._client(sock, *control.peer(sock)))
            self._clients.add(task)
            task.add_done_callback(self._client_gone)

    def _client_gone(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)
        if not self._clients and not self.sessions:
            self._idle.set()

    async def _client(self, sock: socket.socket, pid: int, uid: int) -> None:
        inbox: asyncio.Queue[tuple[Any, list[int]] | None] = asyncio.Queue()
        client = Channel(sock, control.FROM_RUN if uid == 0 else control.READING)
        client.attach(
            asyncio.get_running_loop(),
            lambda message, fds: inbox.put_nowait((message, fds)),
            lambda: inbox.put_nowait(None),
        )
        home = home_of(pid)
        session: Session | None = None
        orders = ServiceOrders(self, user_name(uid), uid)
        try:
            while (item := await inbox.get()) is not None:
                message, fds = item
                match message:
                    case control.OpenRun() if session is None:
                        session = await self._open(client, message, fds)
                    case control.CommandEnded(status=status, wait=wait) if session is not None:
                        close_all(fds)
                        if wait:
                            await session.until_empty()
                        ending, session = session, None
                        client.send(await self.end(ending, home=home, status=status))
                    case control.StatusQuestion():
                        close_all(fds)
                        client.send(await self._status())
                    case control.ModulesOf(pid=of):
                        close_all(fds)
                        client.send(control.Modules(pid=of, modules=await self._modules(of)))
                    case control.OpenConsole():
                        close_all(fds)
                        self._open_console(client)
                    case _ if orders.takes(message):
                        client.send(await orders.answer(message, fds))
                    case _:
                        close_all(fds)
            await orders.client_gone()
            if session is not None:  # the front-end is gone: what it promised the command still holds
                await session.until_empty()
                await self.end(session, home=home, status=None)
        finally:
            client.close()
            while not inbox.empty():
                if (left := inbox.get_nowait()) is not None:
                    close_all(left[1])

    def _open_console(self, client: Channel) -> None:
        try:
            with self.backbone.recorder_channel(Role.CONSOLE, "") as sock:
                client.send(control.ConsoleOpened(), sock.fileno())
        except (ChildFailed, OSError) as error:
            client.send(refusal(error))

    # -- runs ----------------------------------------------------------------------------------------------------------
    async def opened(self, order: control.OpenRun | control.StartService, fds: list[int], user: str) -> Session:
        """A session that serves. Raises what went wrong, once nothing of it is left."""
        try:
            session = Session(self.backbone, os.urandom(4).hex(), order, fds)
        except BaseException:  # a policy of another version's, say
            close_all(fds)
            raise
        self.sessions[session.name] = session
        try:
            begun = unrecorded.Begun(
                session=session.name, program=session.program, on_failure=session.policy.on_failure
            )
            unrecorded.begin(self.state, begun)
            self.backbone.open_capture(session)
            await session.open(user)
            self._apart()
            if session.is_service:
                for gone in succeed(self.state, self.sessions):
                    print(f"the hook of the service before, {gone.name}: {gone.problem or 'removed'}", file=sys.stderr)
        except Exception:
            traceback.print_exc()
            await self.end(session, home=None, status=None)
            raise
        return session

    def _apart(self, ending: Session | None = None) -> None:
        """What a run diverts, the service does not divert once more; what an `ending` one leaves, it does."""
        sessions = [session for session in self.sessions.values() if session is not ending]
        live = [(session, session.scope) for session in sessions if session.scope is not None]
        commands = [scope.path for session, scope in live if not session.is_service]
        for _, scope in live:
            scope.leave_out(commands)

    async def _open(self, client: Channel, order: control.OpenRun, fds: list[int]) -> Session | None:
        try:
            session = await self.opened(order, fds, order.user)
        except Exception as error:
            client.send(refusal(error))
            return None
        assert session.scope is not None
        client.send(
            control.RunOpened(
                session=session.name,
                cgroup=str(session.scope.path),
                folder=str(session.folder),
                root_pem=self.backbone.root_pem,
            )
        )
        return session

    async def end(self, session: Session, *, home: str | None, status: int | None) -> control.RunClosed:
        """End `session` once, whoever asks and however often; who asks and is cancelled does not stop it halfway."""
        task = self._ends.get(session.name)
        if task is None:
            task = self._ends[session.name] = asyncio.create_task(self._end_once(session, home, status))
            task.add_done_callback(lambda done: self._ends.pop(session.name, None))
        return await asyncio.shield(task)

    async def _end_once(self, session: Session, home: str | None, status: int | None) -> control.RunClosed:
        await self.backbone.mended()
        session.divert_no_more()
        self._apart(session)  # at once: what it selects of the survivors, the service diverts
        survivors = await session.close(home=home)
        live = "process lives" if survivors == 1 else "processes live"
        detail = f"{survivors} {live} on, no longer diverted" if survivors else ""
        self.backbone.record(
            ServiceSeen(
                operation="service_stopped" if session.is_service else "run_ended",
                session=session.name,
                detail=detail,
                command=() if session.is_service else (session.program,),
                status=status,
            )
        )
        flushed = await self.backbone.flush(session.name)
        if flushed is not None:
            unrecorded.end(self.state, session.name)
        counts = flushed or SessionFlushed(session=session.name)
        self.sessions.pop(session.name, None)
        self._apart()
        return control.RunClosed(
            committed=flushed is not None,
            connections=counts.connections,
            requests=counts.requests,
            findings=counts.findings,
            faults=counts.faults,
            cut=session.children.cut,
            survivors=survivors,
        )

    def record_left(self) -> None:
        """Whose end is on no record, because an earlier supervisor was killed."""
        for begun in unrecorded.left(self.state):
            detail = (
                f"{begun.program or begun.session}: its supervisor ended before it did, and nothing more was recorded"
            )
            what = FaultSeen(what="session_unrecorded", detail=detail, failed=begun.on_failure, session=begun.session)
            self.backbone.record(what)
            unrecorded.end(self.state, begun.session)

    # -- what runs -----------------------------------------------------------------------------------------------------
    def _children(self) -> list[tuple[ChildProcess, str]]:
        rows: list[tuple[ChildProcess, str]] = [(child, "") for child in self.backbone.children]
        for session in self.sessions.values():
            rows += [(child, session.name) for child in (*session.children.all, *session.children.aides)]
            if isinstance(session.hook, DivertBackend):
                rows += [(child, session.name) for child in session.hook.children]
        return rows

    async def _status(self) -> control.StatusAnswer:
        live = list(self.sessions.values())
        flows = await asyncio.gather(*(session.children.flows() for session in live))
        sessions = [(one.name, one.program, str(one.scope.path if one.scope else "")) for one in live]
        processes = [(str(child.role), child.pid, name) for child, name in self._children()]
        counts = [(one.name, told.live, told.decrypted) for one, told in zip(live, flows, strict=True)]
        learned = [(one.name, bypass) for one, told in zip(live, flows, strict=True) for bypass in told.learned]
        service = running.service_status() if (running := self._service()) is not None else None
        backends = [(one.name, str(one.hook.kind)) for one in live if one.hook is not None]
        return control.status_answer(
            os.getpid(), sessions, processes, counts, service, backends, learned, off=self.backbone.off
        )

    async def _modules(self, pid: int) -> tuple[str, ...]:
        if pid == os.getpid():
            return tuple(sorted(sys.modules))
        child = next((child for child, _ in self._children() if child.pid == pid), None)
        return await child.modules() if child is not None else ()

    async def stop(self) -> None:
        """End signer and recorder; every event is committed."""
        await self.backbone.stop()
        with contextlib.suppress(OSError):  # pins of an earlier supervisor's command keep it
            kept = any(
                entry.is_dir() for entry in self.state.bpf.iterdir()
            )  # a new bpffs may hold files of the kernel's
            if bpffs.is_mounted(self.state.bpf) and not kept:
                bpffs.unmount(self.state.bpf)


async def _main(state: State, ready: int, log: LogFile, *, worker: bool) -> None:
    supervisor = Supervisor(state, log)
    listener = control.listen(state.control, readers_gid())
    try:
        reap(state)
        if state.log_was_emptied():
            raise ChildFailed(f"log_damaged: {state.log_file} is empty, but events have been recorded in it")
        await supervisor.backbone.start(worker=worker)
        supervisor.record_left()
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
    log = LogFile(state.supervisor_log, 2)
    sys.stdout = sys.stderr = OwnWords(log.write)
    print(f"mitmsec {__version__} supervisor, pid {os.getpid()}", file=sys.stderr)
    try:
        state.hold()
    except StateBusy:
        os.write(ready, b"busy\n")
        return 1
    return _run(_main(state, ready, log, worker="worker" in sys.argv[3:]))
