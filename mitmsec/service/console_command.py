"""`mitmsec audit console`: binds the socket, begins the console as a process of its own, and stays until Ctrl-C.

supervisor ── channel to its recorder ──► this ── that, and the socket ──► console (no privilege, no way out)
                                            ▲─────────── RecorderLost ──┘ another one is asked for
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from mitmsec.channel import Channel, ChannelBroken, close_all
from mitmsec.core.messages import Fault, Ready, Role
from mitmsec.core.model import Severity, Value
from mitmsec.service import control, notices
from mitmsec.service.accounts import Account, account_of
from mitmsec.service.called import program, with_state
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.console_evidence import evidence
from mitmsec.service.console_messages import (
    ConsoleNotice,
    ConsoleRecorder,
    ConsoleSettings,
    EvidenceHeld,
    EvidenceOrder,
    RecorderLost,
    SupervisorLost,
)
from mitmsec.service.jail import Jail, spawn
from mitmsec.service.joining import join
from mitmsec.service.options import EXIT_FAULT, EXIT_USAGE, debug_option, fail, need_root, state_option
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State

ASKED_S = 20.0
LOOK_S = 3.0  # at the notice
AGAIN_S = 0.3
BACKLOG = 64


class SupervisorGone(Exception):
    """It does not answer."""


class Listening(Value, frozen=True):
    """Where, and by what names it may be called."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    @property
    def written(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listening(ctx: click.Context, param: click.Parameter, value: str) -> Listening:
    host, _, port = value.rpartition(":")
    host = host.strip("[]")
    try:
        number = int(port)
        if host != "localhost":
            ipaddress.ip_address(host)
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r} is not ADDRESS:PORT, as 127.0.0.1:8765 or [::1]:8765") from None
    return Listening(host="127.0.0.1" if host == "localhost" else host, port=number)


@click.command()
@click.option(
    "--listen", default="127.0.0.1:8765", show_default=True, callback=_listening, metavar="ADDRESS:PORT",
    help="Where browsers find it. Port 0: any. Beyond this machine only with TLS.",
)  # fmt: skip
@click.option("--host", "names", multiple=True, metavar="NAME", help="A further name that browsers call it by; repeat.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="PEM, with its chain.")
@click.option(
    "--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="PEM, without a password."
)
@click.option(
    "--two-people",
    multiple=True,
    type=click.Choice([*(one.value for one in Severity), "none"]),
    default=("high",),
    show_default=True,
    help="Findings of this severity are signed off by two people; repeat.",
)
@state_option
@debug_option
def console(
    listen: Listening,
    names: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    two_people: tuple[str, ...],
    state_folder: Path,
) -> None:
    """Serve the pages where auditors review, until Ctrl-C.

    Accounts are made by `audit account add`. Whoever opens something, decides or exports is on record in the log before
    it happens. Without the recorder nothing is done.
    """
    need_root("audit console")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key come together")
    if not listen.is_loopback and tls_cert is None:
        raise click.UsageError(f"{listen.written} is not this machine alone: give --tls-cert and --tls-key")
    state = State(state_folder)
    try:
        joined = join(state, worker=False)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    try:
        listener = socket.create_server(
            (listen.host, listen.port),
            family=socket.AF_INET6 if ":" in listen.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        joined.close()
        fail(f"--listen: {listen.written}: {error.strerror}", "choose another port, or end who has it", EXIT_USAGE)
    with listener:
        listen = Listening(host=listen.host, port=listener.getsockname()[1])
        certificate, key = _tls_files(state, tls_cert, tls_key)
        settings = ConsoleSettings(
            log=str(state.log),
            review=str(state.review),
            hosts=_hosts(listen, names, is_tls=bool(certificate)),
            two_people=tuple(one for one in two_people if one != "none"),
            notice=notices.hanging(state),
            certificate=certificate,
            key=key,
        )
        address = f"{'https' if certificate else 'http'}://{names[0] if names else listen.host}:{listen.port}"
        if ":" in listen.host and not names:
            address = f"{'https' if certificate else 'http'}://{listen.written}"
        asyncio.run(_Serving(state, joined, listener, settings, address).serve())


def _hosts(listen: Listening, names: tuple[str, ...], *, is_tls: bool) -> tuple[str, ...]:
    """As they stand in `Host`: with the port, but for the scheme's own."""
    called = {listen.written.rpartition(":")[0], *names}
    if listen.is_loopback:
        called |= {"localhost"}
    own = 443 if is_tls else 80
    plain = {name.lower() for name in called}
    return tuple(sorted({f"{name}:{listen.port}" for name in plain} | (plain if listen.port == own else set())))


def console_account(state: State) -> Account:
    """Its own user; of the log it may read what that folder's group may."""
    account = account_of(Role.CONSOLE)
    return Account(uid=account.uid, gid=os.stat(state.log).st_gid, name=account.name)


def _tls_files(state: State, certificate: Path | None, key: Path | None) -> tuple[str, str]:
    """Copies that the console's user can read, in its own folder."""
    if certificate is None or key is None:
        return "", ""
    account, copies = account_of(Role.CONSOLE), []
    for source, name in ((certificate, "tls.pem"), (key, "tls.key")):
        target = state.review / name
        target.unlink(missing_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400), "wb") as file:
            os.fchown(file.fileno(), account.uid, account.gid)
            with open(source, "rb") as content:
                shutil.copyfileobj(content, file)
        copies.append(str(target))
    return copies[0], copies[1]


class _Serving:
    """One console, for as long as the command runs."""

    def __init__(
        self, state: State, joined: Channel, listener: socket.socket, settings: ConsoleSettings, address: str
    ) -> None:
        self._state, self._joined, self._listener = state, joined, listener
        self._settings, self._address = settings, address
        self._orders: set[asyncio.Task[None]] = set()
        self._child: ChildProcess | None = None
        self._lost = asyncio.Event()
        self._over = asyncio.Event()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._over.set)
        try:
            recorder = self._recorder()
        except CannotRun as error:
            fail(error.error, error.remedy, error.status)
        except SupervisorGone as error:
            fail(f"the supervisor does not answer: {error}", "try again", EXIT_FAULT)
        jail = Jail(
            role=Role.CONSOLE,
            account=console_account(self._state),
            mountpoint=str(self._state.jail),
            folder=str(self._state.review),
            shows=(str(self._state.log),),
        )
        says = lambda line: click.echo(line, err=True)  # noqa: E731
        child = ChildProcess(
            Role.CONSOLE, partial(spawn, jail), says, [Ready, Fault, RecorderLost, EvidenceHeld, EvidenceOrder]
        )
        self._child = child
        child.on_message = self._said
        child.watch(lambda status: self._over.set())
        try:
            answer = await child.start(self._settings, self._listener.fileno(), recorder)
        except ChildFailed as error:
            fail(str(error), "the lines above say why", EXIT_FAULT)
        finally:
            os.close(recorder)
        if isinstance(answer, Fault):
            await child.stop()
            fail(f"the console cannot begin: {answer.detail}", "", EXIT_USAGE)
        self._listener.close()
        self._tell()
        self._watch(child)
        tasks = [asyncio.create_task(self._mend(child)), asyncio.create_task(self._renew(child))]
        await self._over.wait()
        for task in tasks:
            task.cancel()
        ended = child.ended.done()
        await child.stop()
        self._unwatch()
        if ended:
            fail("the console ended by itself", "the lines above say why", EXIT_FAULT)

    def _tell(self) -> None:
        click.echo(f"the console is at {self._address}/   (Ctrl-C ends it)")
        if not (self._state.review / "desk.db").exists() or not _has_accounts(self._state):
            again = f"{program()} audit account add NAME --role reviewer{with_state(self._state)}"
            click.echo(f"mitmsec: it has no account yet; make one: {again}", err=True)

    def _recorder(self) -> int:
        """A channel to the recorder. Raises CannotRun; SupervisorGone."""
        try:
            received = self._joined.exchange(control.OpenConsole(), timeout_s=ASKED_S)
        except (OSError, ChannelBroken) as error:
            raise SupervisorGone(str(error)) from None
        match received:
            case (control.ConsoleOpened(), [descriptor]):
                return int(descriptor)
            case (control.Refused() as refused, fds):
                close_all(fds)
                raise CannotRun(refused.error, refused.remedy, refused.status)
            case _:
                raise SupervisorGone("it ended")

    def _said(self, message: Any, fds: list[int]) -> None:
        close_all(fds)
        if isinstance(message, RecorderLost):
            self._lost.set()
        elif isinstance(message, EvidenceHeld | EvidenceOrder):
            task = asyncio.create_task(self._evidence(message))
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)

    async def _evidence(self, order: EvidenceHeld | EvidenceOrder) -> None:
        answer, fds = await asyncio.to_thread(evidence, self._state, order)
        try:
            if self._child is not None:
                with contextlib.suppress(OSError):
                    self._child.channel.send(answer, *fds)
        finally:
            close_all(fds)

    async def _mend(self, child: ChildProcess) -> None:
        """The recorder, or the supervisor with it, has ended: there will be another one, or we begin it."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            await asyncio.sleep(AGAIN_S)
            while not self._mended(child):
                await asyncio.sleep(AGAIN_S)

    def _watch(self, child: ChildProcess) -> None:
        """The supervisor says nothing unasked: what there is to read is its end."""
        asyncio.get_running_loop().add_reader(self._joined.fileno(), self._part, child)

    def _unwatch(self) -> None:
        if not self._joined.closed:
            asyncio.get_running_loop().remove_reader(self._joined.fileno())
            self._joined.close()

    def _part(self, child: ChildProcess) -> None:
        """From the supervisor, which has gone."""
        self._unwatch()
        child.channel.send(SupervisorLost())
        self._lost.set()

    def _mended(self, child: ChildProcess) -> bool:
        try:
            descriptor = self._recorder()
        except CannotRun:  # it is putting that right
            return False
        except SupervisorGone:
            self._part(child)
            with contextlib.suppress(CannotRun):
                self._joined = join(self._state, worker=False)
                self._watch(child)
            return False
        child.channel.send(ConsoleRecorder(), descriptor)
        os.close(descriptor)
        return True

    async def _renew(self, child: ChildProcess) -> None:
        told = self._settings.notice
        while True:
            await asyncio.sleep(LOOK_S)
            if (now := notices.hanging(self._state)) != told:
                child.channel.send(ConsoleNotice(notice=now))
                told = now


def _has_accounts(state: State) -> bool:
    from mitmsec.service.account_commands import accounts_of

    return bool(accounts_of(state))
