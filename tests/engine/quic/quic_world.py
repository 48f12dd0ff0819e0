"""What tests of QUIC have around an engine: aioquic's origin and client, and a gate that carries by two pairs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trustme
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from engine_world import DECISION, NAME, RealMint, Recorder

from mitmsec.core.clienthello import ClientHello
from mitmsec.core.inspection import Inspector
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, Upgrading
from mitmsec.core.model import Decision, Endpoint, OnFailure, OnFinding, Upstream
from mitmsec.core.quic_opening import QuicOpening
from mitmsec.engine.engine import Engine
from mitmsec.engine.seams import Collaborators, EngineSettings, Refused
from mitmsec_certs.key_encapsulation import encapsulation
from mitmsec_certs.packet_cipher import Aes128
from mitmsec_certs.upstream import Terms, Verifier


def story[**P](test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test on a loop of its own."""

    @functools.wraps(test)
    def played(*arguments: P.args, **more: P.kwargs) -> None:
        asyncio.run(test(*arguments, **more))

    return played


Fields = list[tuple[bytes, bytes]]
Answers = Callable[["Origin", int, dict[str, str], bytes], None]


class Origin(QuicConnectionProtocol):
    """Calls `answers` with each request that is complete."""

    answers: Answers
    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if self.http is None:
            self.http = H3Connection(self._quic)
            self.bodies: dict[int, bytearray] = {}
            self.heads: dict[int, dict[str, str]] = {}
        for seen in self.http.handle_event(event):
            self._seen(seen)

    def _seen(self, seen: H3Event) -> None:
        if isinstance(seen, HeadersReceived):
            self.heads.setdefault(seen.stream_id, {name.decode(): value.decode() for name, value in seen.headers})
        if isinstance(seen, DataReceived):
            self.bodies.setdefault(seen.stream_id, bytearray()).extend(seen.data)
        if isinstance(seen, HeadersReceived | DataReceived) and seen.stream_ended:
            stream_id = seen.stream_id
            type(self).answers(self, stream_id, self.heads[stream_id], bytes(self.bodies.get(stream_id, b"")))

    def say(self, stream_id: int, body: bytes, fields: Fields | None = None, trailers: Fields | None = None) -> None:
        assert self.http is not None
        head = [(b":status", b"200"), (b"content-type", b"text/plain"), *(fields or [])]
        self.http.send_headers(stream_id, head)
        self.http.send_data(stream_id, body, end_stream=not trailers)
        if trailers:
            self.http.send_headers(stream_id, trailers, end_stream=True)
        self.transmit()

    def end_once_taken(self) -> None:
        """As soon as the other end has all that was said."""
        if any(stream.sender._buffer for stream in self._quic._streams.values()):
            asyncio.get_running_loop().call_later(0.02, self.end_once_taken)
        else:
            self._quic.close(error_code=0x100)
            self.transmit()


def hello_of(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
    """Says what it was asked."""
    origin.say(stream_id, f"{head[':method']} {head[':authority']}{head[':path']} {len(body)}".encode())


class Client(QuicConnectionProtocol):
    """Asks, and keeps answers."""

    def begin(self) -> None:
        self.http = H3Connection(self._quic)
        self.answers: dict[int, Answer] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            for answer in getattr(self, "answers", {}).values():
                answer.fail(f"ended 0x{event.error_code:x}")
        if isinstance(event, StreamReset):
            self.answers[event.stream_id].fail(f"reset 0x{event.error_code:x}")
        for seen in self.http.handle_event(event) if hasattr(self, "http") else ():
            answer = self.answers.get(getattr(seen, "stream_id", -1))
            if answer is None:
                continue
            if isinstance(seen, HeadersReceived):
                (answer.trailers if answer.head else answer.head).update(
                    {name.decode(): value.decode() for name, value in seen.headers}
                )
            if isinstance(seen, DataReceived):
                answer.body += seen.data
            if isinstance(seen, HeadersReceived | DataReceived) and seen.stream_ended:
                answer.whole.set()

    def ask(
        self,
        path: str = "/",
        *,
        authority: str = NAME,
        body: bytes | None = None,
        fields: Fields | None = None,
        method: bytes = b"",
    ) -> Answer:
        stream_id = self._quic.get_next_available_stream_id()
        method = method or (b"GET" if body is None else b"POST")
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", authority.encode())]
        head += [(b":path", path.encode()), *(fields or [])]
        answer = self.answers[stream_id] = Answer()
        self.http.send_headers(stream_id, head, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream_id, body, end_stream=True)
        self.transmit()
        return answer

    async def got(self, *arguments: Any, **more: Any) -> Answer:
        answer = self.ask(*arguments, **more)
        await answer.complete()
        return answer


class Answer:
    def __init__(self) -> None:
        self.head: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = bytearray()
        self.failed = ""
        self.whole = asyncio.Event()

    def fail(self, why: str) -> None:
        self.failed = self.failed or why
        self.whole.set()

    async def complete(self) -> None:
        await asyncio.wait_for(self.whole.wait(), 20)

    @property
    def status(self) -> str:
        return self.head.get(":status", self.failed)


class QuicWorld:
    """`port` is where clients send to: a gate hands each over, and relays datagrams by two pairs."""

    def __init__(self, engine: Engine, recorder: Recorder, mint: RealMint, origin: Endpoint) -> None:
        self.engine, self.recorder, self.mint, self.origin = engine, recorder, mint, origin
        self.name, self.decision = NAME, DECISION
        self.ends: asyncio.Queue[FlowEnded] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.relay = _udp()
        self.relay.bind(("127.0.0.1", 0))
        self.port = self.relay.getsockname()[1]
        self.loop.add_reader(self.relay, self._heard)
        self._flows: dict[Any, _Flow] = {}
        self.deaf = False

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, address = self.relay.recvfrom(65535)
                flow = self._flows.get(address)
                if flow is None:
                    flow = self._flows[address] = _Flow(self, address, f"flow-{len(self._flows) + 1}")
                flow.heard(datagram)

    async def connect(self, flow: str) -> socket.socket:
        raise Refused("not over QUIC")

    def ended(self, ended: FlowEnded) -> None:
        self.ends.put_nowait(ended)

    def upgrading(self, upgrading: Upgrading) -> None:
        raise AssertionError(upgrading)

    async def end(self) -> FlowEnded:
        return await asyncio.wait_for(self.ends.get(), 20)

    def let_go(self) -> None:
        """As a gate does whose program has gone."""
        for flow in self._flows.values():
            flow.front.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.loop.remove_reader(self.relay)
        self.relay.close()
        for flow in self._flows.values():
            flow.close()

    @contextlib.asynccontextmanager
    async def client(self, root_pem: str | None = None, name: str = NAME) -> AsyncIterator[Client]:
        """Raises ConnectionError where it comes to nothing."""
        settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=name)
        settings.load_verify_locations(cadata=(root_pem or self.mint.root_pem).encode())
        async with connect("127.0.0.1", self.port, configuration=settings, create_protocol=Client) as client:
            assert isinstance(client, Client)
            client.begin()
            yield client


class _Flow:
    """Of the gate."""

    def __init__(self, world: QuicWorld, address: Any, flow: str) -> None:
        self.world, self.address, self.id = world, address, flow
        self.front, worker_front = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.back, worker_back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.udp = _udp()
        self.udp.connect((world.origin.address, world.origin.port))
        self.held: list[bytes] = []
        self.carried = 0
        """Bytes from the origin to the worker."""
        self.opening: QuicOpening | None = QuicOpening(Aes128())
        self.theirs = worker_front, worker_back
        for sock, to in ((self.front, self._to_client), (self.back, self._send), (self.udp, self.back.send)):
            sock.setblocking(False)
            world.loop.add_reader(sock, self._carry, sock, to)

    def _to_client(self, data: bytes) -> int:
        return self.world.relay.sendto(data, self.address)

    def _send(self, data: bytes) -> int:
        return self.udp.send(data)

    def _carry(self, sock: socket.socket, to: Callable[[bytes], int]) -> None:
        with contextlib.suppress(OSError):
            while data := sock.recv(65535):
                if not (self.world.deaf and sock is self.udp):
                    with contextlib.suppress(OSError):
                        to(data)
                        self.carried += len(data) if sock is self.udp else 0
            self.world.loop.remove_reader(sock)

    def heard(self, datagram: bytes) -> None:
        if self.opening is None:
            with contextlib.suppress(OSError):
                self.front.send(datagram)
            return
        self.held.append(datagram)
        hello = self.opening.fed(datagram)
        if isinstance(hello, ClientHello):
            self.opening = None
            for one in self.held:
                self.front.send(one)
            self._hand(hello)

    def _hand(self, hello: ClientHello) -> None:
        order = HandOver(
            flow=self.id,
            kind=Plaintext.QUIC,
            name=self.world.name,
            origin=self.world.origin,
            client=Endpoint(address="127.0.0.1", port=self.address[1]),
            decision=self.world.decision,
            http3_led=True,
            hello=hello.raw,
        )
        self.world.engine.take(order, *self.theirs)

    def close(self) -> None:
        for sock in (self.front, self.back, self.udp):
            self.world.loop.remove_reader(sock)
            sock.close()


def _udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


class _LateGate:
    """The engine wants its gate before the world is there."""

    world: QuicWorld

    async def connect(self, flow: str) -> socket.socket:
        return await self.world.connect(flow)

    def ended(self, flow: FlowEnded) -> None:
        self.world.ended(flow)

    def upgrading(self, flow: Upgrading) -> None:
        self.world.upgrading(flow)


@contextlib.asynccontextmanager
async def origin(
    ca: trustme.CA, answers: Answers = hello_of, *names: str, asks: bool = False, alpn: str = "h3", **issue: Any
) -> AsyncIterator[int]:
    """An origin on loopback; its port."""
    issued = ca.issue_cert(*(names or (NAME,)), **issue)
    settings = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
    settings.certificate, *settings.certificate_chain = [
        x509.load_pem_x509_certificate(blob.bytes()) for blob in issued.cert_chain_pems
    ]
    settings.private_key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    kind = type("AnOrigin", (Origin,), {"answers": staticmethod(answers)})
    server = await serve("127.0.0.1", 0, configuration=settings, create_protocol=kind)
    if asks:
        _make_it_ask(server)
    try:
        yield server._transport.get_extra_info("sockname")[1]
    finally:
        server.close()


def _make_it_ask(server: Any) -> None:
    """aioquic asks its clients for a certificate where its TLS is told to."""
    create = server._create_protocol

    def asking(quic: Any, **more: Any) -> Any:
        initialize = quic._initialize

        def initialized(peer_cid: bytes) -> None:
            initialize(peer_cid)
            quic.tls._request_client_certificate = True

        quic._initialize = initialized
        return create(quic, **more)

    server._create_protocol = asking


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    origin_port: int,
    roots: Sequence[trustme.CA] = (),
    *,
    inspectors: Sequence[Inspector] = (),
    on_failure: OnFailure = OnFailure.OPEN,
    on_finding: OnFinding = OnFinding.ALERT,
    upstream: Upstream = Upstream.MIRROR,
    decrypts: bool = True,
    hybrid: bool = False,
    terms: Terms = Terms(),  # noqa: B008 -- frozen
) -> AsyncIterator[QuicWorld]:
    recorder, mint, gate = Recorder(), RealMint(tmp_path / "ca"), _LateGate()
    engine = Engine(
        EngineSettings(on_failure=on_failure, quic=decrypts),
        Collaborators(
            certifier=mint,
            gate=gate,
            judge=Verifier(msgspec.structs.replace(terms, own_pem=mint.own_pem)).judge,
            recorder=recorder,
            roots_pem=b"".join(ca.cert_pem.bytes() for ca in roots),
            inspectors=inspectors,
            encapsulation=encapsulation if hybrid else lambda: None,
        ),
    )
    made = gate.world = QuicWorld(engine, recorder, mint, Endpoint(address="127.0.0.1", port=origin_port))
    made.decision = Decision(
        action=DECISION.action,
        rule=DECISION.rule,
        reason=DECISION.reason,
        inspect=tuple(inspector.name for inspector in inspectors),
        on_finding=on_finding,
        upstream=upstream,
    )
    try:
        yield made
    finally:
        await engine.stop()
        made.close()
