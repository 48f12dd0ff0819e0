"""A gate with real sockets on loopback, and everybody around it, played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from mitmsec.audit.event import BytesSeen, ConnectionSeen, FaultSeen, FlowHanded, Outcome
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Committed, Crls, MintDecision, MintWithdrawn
from mitmsec.core.model import Action, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.gate.loop import Gate
from mitmsec.gate.origin_probe import OriginProbe
from mitmsec.gate.signals import Origin
from mitmsec.gate.surroundings import Surroundings
from mitmsec.gate.terms import Terms

WAIT_S = 20.0
CURL = Process(pid=4711, exe="/usr/bin/curl", name="curl")


class Recorder:
    """The other end of the gate's recorder channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.events: list[Any] = []
        self.answers = True
        self._changed = asyncio.Event()
        self._channel = Channel(sock, [FlowHanded, ConnectionSeen, BytesSeen, FaultSeen])
        self._channel.attach(asyncio.get_running_loop(), self._take, lambda: None)
        self.count = 0

    def _take(self, seen: Any, fds: list[int]) -> None:
        self.events.append(seen)
        self.count += 1
        if self.answers:
            self._channel.send(Committed(count=self.count))
        self._changed.set()

    def commit(self) -> None:
        self.answers = True
        self._channel.send(Committed(count=self.count))

    def die(self) -> None:
        self._channel.close()

    async def until(self, holds: Callable[[list[Any]], Any]) -> Any:
        """What `holds` gives as soon as it is true."""
        async with asyncio.timeout(WAIT_S):
            while not (found := holds(self.events)):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def connection(self, number: int = 0) -> ConnectionSeen:
        """The record of the connection that ended as number `number`."""

        def ended(events: list[Any]) -> list[ConnectionSeen]:
            seen = [e for e in events if isinstance(e, ConnectionSeen) and e.outcome is not Outcome.OPEN]
            return seen[number : number + 1]

        (seen,) = await self.until(ended)
        assert isinstance(seen, ConnectionSeen)
        return seen

    def faults(self) -> list[str]:
        return [seen.what for seen in self.events if isinstance(seen, FaultSeen)]


class House:
    """The gate under test. `origin` is where every diverted connection was going; None: nobody's."""

    def __init__(
        self,
        policy: Policy,
        terms: Terms,
        listeners: list[socket.socket],
        limit: int | None,
        probe: OriginProbe | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        mine, theirs = pair()
        self.recorder = Recorder(theirs)
        signer, self._signer = pair()
        self.minted: list[Any] = []
        self.signer = Channel(self._signer, [MintDecision, MintWithdrawn])
        self.signer.attach(loop, lambda message, fds: self.minted.append(message), lambda: None)
        self.origin: Origin | None = None
        self.process: Process | None = CURL
        self.asked = 0  # whose connection it is
        self.beats = 0
        self.hung: list[int] = []
        self.dns: list[tuple[Endpoint, Endpoint, bool, bytes]] = []
        self.producer = Producer(mine, loop)
        self.address = listeners[0].getsockname()[:2]
        around = Surroundings(
            origins=self,
            recorder=self.producer,
            signer=Channel(signer, [Crls]),
            ask=self._ask,
            beat=self._beat,
            hangs=self.hung.append,
            dns=lambda *message: self.dns.append(message),
        )
        self.gate = Gate(
            listeners,
            around,
            policy,
            terms,
            session="test",
            connect_deadline_s=5.0,
            heartbeat_s=0.01,
            limit=limit,
            probe=probe,
        )
        self.gate.open()

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        return self.origin

    def _ask(self, number: int, origin: Origin) -> None:
        self.asked += 1
        if self.process is not None:
            asyncio.get_running_loop().call_soon(self.gate.owner, number, self.process)

    def _beat(self) -> None:
        self.beats += 1

    def divert(self, address: tuple[Any, ...], bound: str | None = None) -> None:
        """From now on every connection was going there."""
        remote = Endpoint.of(address[0], address[1])
        self.origin = Origin(remote=remote, pid=4711, uid=1000, comm="curl", bound=bound)

    def dial(self) -> socket.socket:
        """A client's socket, connected to the gate, with time-outs."""
        sock = socket.create_connection(self.address, WAIT_S)
        sock.settimeout(WAIT_S)
        return sock

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


class HouseMaker:
    """Makes houses that are closed at the end."""

    def __init__(self) -> None:
        self._houses: list[House] = []

    def __call__(
        self,
        policy: Policy | Action = Action.BYPASS,
        *,
        on_failure: OnFailure = OnFailure.OPEN,
        limit: int | None = None,
        probe: OriginProbe | None = None,
        **terms: Any,
    ) -> House:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        policy = policy if isinstance(policy, Policy) else Policy(action=policy)
        house = House(policy, Terms(on_failure=on_failure, **terms), [listener], limit, probe)
        self._houses.append(house)
        return house

    async def close(self) -> None:
        for house in self._houses:
            await house.gate.close()
            house.recorder.die()
            house.signer.close()


@contextlib.asynccontextmanager
async def houses() -> AsyncIterator[HouseMaker]:
    """`async with houses() as house: h = house(Action.BLOCK)`."""
    maker = HouseMaker()
    try:
        async with asyncio.timeout(60):
            yield maker
    finally:
        await maker.close()


class Tape:
    """A tee that keeps everything, or refuses, or has no room until `resume`."""

    def __init__(self) -> None:
        self.kept: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        self.refuses = False
        self.full = False
        self.waiting: list[Callable[[], None]] = []

    def take(self, sent: bool, data: bytes) -> bool:
        self.kept[sent] += data
        return not self.refuses

    def wait(self, resume: Callable[[], None]) -> bool:
        if self.full:
            self.waiting.append(resume)
        return self.full


class Server:
    """A raw TCP origin; `serve(reader, writer)` for each connection."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self._serve = serve
        self.contacts = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Server:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.contacts += 1
            self.writers.append(writer)
            with contextlib.suppress(ConnectionError):
                await self._serve(reader, writer)

        self._server = await asyncio.start_server(one, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in self.writers:
            with contextlib.suppress(AttributeError):  # of one that has sent its rest asyncio forgets that it is closed
                writer.transport.abort()


def on_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in a loop of its own."""

    @functools.wraps(scenario)
    def test() -> None:
        asyncio.run(scenario())

    del test.__wrapped__  # pytest would look through it for fixtures
    return test


async def pair_over_loopback() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other = listener.accept()[0]
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def wait_reset(sock: socket.socket) -> bool:
    """Whether `sock`, with a time-out, sees a reset and nothing before it."""
    try:
        return sock.recv(1) is None
    except ConnectionResetError:
        return True


def linger_for(sock: socket.socket, seconds: int) -> None:
    """As a worker would that wants the gate's close() to wait: much is still to be sent, and nobody takes it."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
