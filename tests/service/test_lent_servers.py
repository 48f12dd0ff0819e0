"""Connections that a worker's inspectors have: lent by a broker, to servers of the policy and to nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clamd_stage import clamd

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import ProducerUp, Role
from mitmsec.service import lent_servers
from mitmsec.service.broker import Broker
from mitmsec.service.broker_messages import BrokerSettings, ServerLent, ServerWanted
from mitmsec.service.issuers import Issuers
from mitmsec_addons.dialling import dial


class Stage:
    """A broker that serves one worker, whose policy names `server`."""

    async def open(self, folder: Path) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.server = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.gone = f"127.0.0.1:{unused_port()}"
        self.clamd = str(folder / "clamd.sock")
        control, _ = pair()
        self.broker = Broker(Channel(control, [ProducerUp]))
        settings = BrokerSettings(servers=(self.server, self.gone, self.clamd), clamds=(self.clamd,))
        await self.broker.start(settings, [os.memfd_create("roots")])
        mine, theirs = pair()
        self.issuers = Issuers(mine, asyncio.get_running_loop())
        self.broker.told(ProducerUp(role=Role.WORKER), [theirs.detach()])

    async def close(self) -> None:
        self.listener.close()
        self.issuers.close()
        await self.broker.stop()


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        with TemporaryDirectory() as folder:
            await stage.open(Path(folder))
            try:
                await story(stage)
            finally:
                await stage.close()

    asyncio.run(main())


def test_a_server_that_the_policy_names_is_lent() -> None:
    async def story(stage: Stage) -> None:
        with await stage.issuers.servers.connect(stage.server) as made:
            peer, _ = stage.listener.accept()
            await asyncio.get_running_loop().sock_sendall(made, b"to the server")
            assert peer.recv(99) == b"to the server"
            peer.close()

    played(story)


@pytest.mark.parametrize("order", [b"zSHUTDOWN\0", b"nRELOAD\n", b"zMULTISCAN /\0"])
def test_a_clamd_takes_one_stream_from_a_worker_and_no_order(order: bytes) -> None:
    """Neither at once nor behind the end of a stream, from a worker that was taken over."""

    async def story(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        with clamd(Path(stage.clamd).parent):
            for said in (order, b"\0\0\0\1x" + bytes(4) + order):
                with await stage.issuers.servers.connect(stage.clamd) as made:
                    await loop.sock_sendall(made, said)
                    made.shutdown(socket.SHUT_WR)
                    assert await everything(made) in (b"", b"stream: OK\0", b"INSTREAM size limit exceeded. ERROR\0")
            with await dial(stage.clamd) as made:
                await loop.sock_sendall(made, b"zPING\0")
                assert await everything(made) == b"PONG\0"

    played(story)


async def everything(made: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionResetError):  # it hangs up on what it has not read
        async with asyncio.timeout(20):
            while piece := await asyncio.get_running_loop().sock_recv(made, 999):
                got += piece
    return got


def test_no_other_server_is_lent_whoever_asks() -> None:
    """A worker that was taken over could ask for anything."""

    async def story(stage: Stage) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            other.setblocking(False)
            with pytest.raises(ConnectionRefusedError, match="no inspector's server has this address"):
                await stage.issuers.servers.connect(f"127.0.0.1:{other.getsockname()[1]}")
            with pytest.raises(BlockingIOError):
                other.accept()

    played(story)


def test_a_server_that_is_not_there_is_an_error_that_says_so() -> None:
    async def story(stage: Stage) -> None:
        with pytest.raises(ConnectionRefusedError, match="Connection refused"):
            await stage.issuers.servers.connect(stage.gone)

    played(story)


def test_whoever_waits_hears_that_the_broker_has_gone_and_so_do_those_who_come_later() -> None:
    async def story(stage: Stage) -> None:
        ours, theirs = pair()
        issuers = Issuers(ours, asyncio.get_running_loop())
        waits = asyncio.create_task(issuers.servers.connect(stage.server))
        await asyncio.sleep(0)
        theirs.close()
        for one in (waits, issuers.servers.connect(stage.server)):
            with pytest.raises(ConnectionRefusedError, match="the broker has gone"):
                await one
        issuers.close()

    played(story)


def test_a_connection_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        ours, theirs = pair()
        issuers = Issuers(ours, asyncio.get_running_loop())
        heard: asyncio.Queue[ServerWanted] = asyncio.Queue()
        broker = Channel(theirs, [ServerWanted])
        broker.attach(asyncio.get_running_loop(), lambda wanted, _: heard.put_nowait(wanted), lambda: None)
        monkeypatch.setattr(lent_servers, "DEADLINE_S", 0.05)
        with pytest.raises(TimeoutError):
            await issuers.servers.connect(stage.server)
        one, other = socket.socketpair()
        broker.send(ServerLent(number=(await heard.get()).number), one.fileno())
        one.close()
        assert await asyncio.to_thread(other.recv, 1) == b""
        other.close()
        broker.close()
        issuers.close()

    played(story)
