"""A small world around one engine: a gate that hands everything over, a mint, a recorder that remembers, origins."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trustme

from mitmsec.audit.event import FaultSeen, FindingSeen, RequestSeen, Seen
from mitmsec.core.identity import Identity
from mitmsec.core.inspection import AnyInspector, Part
from mitmsec.core.known_service import KnownService
from mitmsec.core.messages import FlowEnded, HandOver, MintQuestion, Plaintext, Upgrading
from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.core.model import (
    Action,
    Clear,
    Decision,
    Direction,
    Endpoint,
    Finding,
    OnFailure,
    OnFinding,
    Severity,
    Upstream,
)
from mitmsec.core.sniff import Protocol
from mitmsec.engine.engine import Engine
from mitmsec.engine.seams import Collaborators, EngineSettings, Leaf, LeafQuestion, Refused, Sealing
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.profile import Name
from mitmsec_certs.signer import Mint
from mitmsec_certs.upstream import Terms, Verifier

NAME = "www.origin.test"
DECISION = Decision(action=Action.DECRYPT, rule="the rule", reason="a test")
RESET = struct.pack("ii", 1, 0)


class Recorder:
    """Remembers."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.congested = False
        self.relief = asyncio.Event()

    def record(self, seen: Seen) -> None:
        self.seen.append(seen)

    async def relieved(self) -> None:
        await self.relief.wait()

    def of[T: Seen](self, kind: type[T]) -> list[T]:
        return [seen for seen in self.seen if isinstance(seen, kind)]

    @property
    def requests(self) -> list[RequestSeen]:
        return self.of(RequestSeen)

    @property
    def findings(self) -> list[FindingSeen]:
        return self.of(FindingSeen)

    @property
    def faults(self) -> list[FaultSeen]:
        return self.of(FaultSeen)


class RealMint:
    """The signer's own code, in this process."""

    def __init__(self, folder: Path) -> None:
        keystore = open_keystore(folder, "test", int(time.time()))
        self.mint, self.keys = Mint(keystore.authority), LeafKeys()
        self.own_pem = keystore.root_pem + keystore.issuing_pem
        self.root_pem = (folder / "root.pem").read_text() if (folder / "root.pem").exists() else _root_of(folder)
        self.questions: list[LeafQuestion] = []
        self.refuses = False

    async def leaf(self, question: LeafQuestion) -> Leaf:
        self.questions.append(question)
        if self.refuses:
            raise Refused("no decision to decrypt this flow")
        asked = MintQuestion(
            number=1,
            flow=question.flow,
            key=question.key,
            not_after_s=question.not_after_s,
            flaw=question.flaw,
        )
        pair, now_s = self.keys.of(question.key, int(time.time())), int(time.time())
        return Leaf(chain=self.mint.leaf(Name.of(question.name), pair, asked, now_s).chain, key=pair.private_key)


def _root_of(folder: Path) -> str:
    for path in sorted(folder.glob("*.pem")) + sorted(folder.glob("*.crt")):
        if "root" in path.name:
            return path.read_text()
    raise AssertionError(f"no root in {sorted(folder.iterdir())}")


class Word:
    """An inspector that finds one word, whole or split, in every kind of part."""

    def __init__(self, name: str = "word", word: bytes = b"SECRET") -> None:
        self.name, self.word = name, word
        self.parts: list[tuple[Part, bytearray]] = []

    def open(self, part: Part) -> _WordReading:
        content = bytearray()
        self.parts.append((part, content))
        return _WordReading(self, part, content)

    def content(self, kind: str, *, sent: bool) -> list[bytes]:
        return [bytes(data) for part, data in self.parts if part.kind == kind and part.sent == sent]


class _WordReading:
    def __init__(self, word: Word, part: Part, content: bytearray) -> None:
        self._word, self._part, self._content = word, part, content
        self._told = False

    def feed(self, data: bytes) -> Sequence[Finding]:
        self._content += data
        if self._told or self._word.word not in self._content:
            return ()
        self._told = True
        side = "request" if self._part.sent else "response"
        return (
            Finding(
                detector=self._word.name,
                severity=Severity.HIGH,
                confidence=1.0,
                summary="the word",
                evidence="S…T",
                location=f"{side}.{self._part.kind}",
                clear=Clear.of(self._word.word),
            ),
        )

    def close(self) -> Sequence[Finding]:
        return ()


class World:
    """`port` is where clients connect; everything goes to `origin`."""

    def __init__(self, engine: Engine, recorder: Recorder, mint: RealMint, origin: Endpoint) -> None:
        self.engine, self.recorder, self.mint, self.origin = engine, recorder, mint, origin
        self.decision = DECISION
        self.name = NAME
        self.kind = Plaintext.TLS
        self.owner = ""
        self.http3 = True
        self.direction = Direction.OUTBOUND
        self.port = 0
        self.protocol: Protocol | None = None
        self.ends: asyncio.Queue[FlowEnded] = asyncio.Queue()
        self.upgrades: asyncio.Queue[Upgrading] = asyncio.Queue()
        self.connects = 0
        self.refuses_connects = False
        self._numbers = itertools.count(1)
        self._dups: dict[str, socket.socket] = {}
        self._origins: dict[str, socket.socket] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = loop.create_task(self._hand(client))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _hand(self, client: socket.socket) -> None:
        flow = f"flow-{next(self._numbers)}"
        origin = None if self.decision.action is Action.BLOCK else await self._dial()
        self._dups[flow] = client.dup()
        if self.kind is Plaintext.DIALOGUE and origin is not None:
            self._origins[flow] = origin.dup()
        address, port = client.getpeername()[:2]
        self.engine.take(
            HandOver(
                flow=flow,
                kind=self.kind,
                name=self.name,
                origin=self.origin,
                client=Endpoint(address=address, port=port),
                decision=self.decision,
                direction=self.direction,
                http3=self.http3,
                owner=self.owner,
                protocol=self.protocol,
            ),
            client,
            origin,
        )

    async def _dial(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.origin.address, self.origin.port))
        return sock

    # -- mitmsec.engine.seams.Gate
    async def connect(self, flow: str) -> socket.socket:
        assert flow in self._dups
        if self.refuses_connects:
            raise Refused("connection refused")
        self.connects += 1
        return await self._dial()

    def ended(self, ended: FlowEnded) -> None:
        dup = self._dups.pop(ended.flow)
        if ended.flow in self._origins:
            self._origins.pop(ended.flow).close()
        if ended.reset:
            dup.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        dup.close()
        self.ends.put_nowait(ended)

    def upgrading(self, upgrading: Upgrading) -> None:
        self.upgrades.put_nowait(upgrading)

    def taken_back(self, flow: str) -> tuple[socket.socket, socket.socket]:
        """The client's socket and the origin's, of which nobody else has one."""
        return self._dups.pop(flow), self._origins.pop(flow)

    async def upgrade(self) -> Upgrading:
        return await asyncio.wait_for(self.upgrades.get(), 20)

    async def end(self) -> FlowEnded:
        return await asyncio.wait_for(self.ends.get(), 20)


class _LateGate:
    """The engine wants its gate before the world is there."""

    world: World

    async def connect(self, flow: str) -> socket.socket:
        return await self.world.connect(flow)

    def ended(self, flow: FlowEnded) -> None:
        self.world.ended(flow)

    def upgrading(self, flow: Upgrading) -> None:
        self.world.upgrading(flow)


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    origin_port: int,
    roots: Sequence[trustme.CA] = (),
    *,
    inspectors: Sequence[AnyInspector] = (),
    on_failure: OnFailure = OnFailure.OPEN,
    on_finding: OnFinding = OnFinding.ALERT,
    upstream: Upstream = Upstream.MIRROR,
    capture: bool = False,
    kind: Plaintext = Plaintext.TLS,
    deadline_s: float = 20.0,
    client_send_buffer_bytes: int | None = None,
    identities: Sequence[Identity] = (),
    services: Sequence[KnownService] = (),
    keys_pem: bytes = b"",
    roots_pem: bytes = b"",
    addons: Sequence[MitmproxyAddon] = (),
    sealing: Sealing | None = None,
    terms: Terms = Terms(),  # noqa: B008 -- frozen
) -> AsyncIterator[World]:
    recorder, mint, gate = Recorder(), RealMint(tmp_path / "ca"), _LateGate()
    (tmp_path / "root.pem").write_text(mint.root_pem)
    engine = Engine(
        EngineSettings(on_failure=on_failure, capture=capture, handshake_deadline_s=deadline_s),
        Collaborators(
            certifier=mint,
            gate=gate,
            judge=Verifier(msgspec.structs.replace(terms, own_pem=mint.own_pem)).judge,
            recorder=recorder,
            roots_pem=roots_pem + b"".join(ca.cert_pem.bytes() for ca in roots),
            inspectors=inspectors,
            identities=identities,
            services=services,
            keys_pem=keys_pem,
            addons=addons,
            sealing=sealing,
        ),
    )
    made = gate.world = World(engine, recorder, mint, Endpoint(address="127.0.0.1", port=origin_port))
    made.kind = kind
    made.decision = Decision(
        action=Action.DECRYPT,
        rule="the rule",
        reason="a test",
        inspect=tuple(inspector.name for inspector in inspectors),
        on_finding=on_finding,
        upstream=upstream,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    if client_send_buffer_bytes is not None:  # what is accepted inherits it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, client_send_buffer_bytes)
    listener.setblocking(False)
    made.port = listener.getsockname()[1]
    accepting = asyncio.get_running_loop().create_task(made.accept(listener))
    try:
        yield made
    finally:
        accepting.cancel()
        listener.close()
        await engine.stop()


# --- origins ----------------------------------------------------------------------------------------------------------
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def server_context(ca: trustme.CA, *names: str, alpn: Sequence[str] = ("http/1.1",), **issue: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*(names or (NAME,)), **issue).configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@contextlib.asynccontextmanager
async def origin(serve: Serve, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server on loopback; its port."""
    live: set[asyncio.StreamWriter] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        live.add(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        live.discard(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.close()

    patience_s = None if context is None else 1.0  # for a close_notify in answer to ours
    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=patience_s)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in live:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def blunt_origin(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that shakes hands once with blocking sockets: unlike asyncio's it sends the alert that it fails with."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                tls.recv(1)

    task = asyncio.create_task(asyncio.to_thread(serve))
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        await task
        listener.close()


class Pages:
    """HTTP/1.1. /bytes/N answers N bytes, /chunked chunks, /close ends unannounced, else the path; bodies are kept."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.broken = 0  # requests that never became complete

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            line, fields = head
            try:
                body = await _body(reader, fields)
            except asyncio.IncompleteReadError:
                self.broken += 1
                return
            self.requests.append((line, fields, body))
            await self.answer(line.split()[1], writer)
            if "/close" in line:
                return

    async def answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path.startswith("/bytes/"):
            left = int(path.rpartition("/")[2])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % left)
            while left:
                piece = min(left, 1 << 16)
                writer.write(b"x" * piece)
                await writer.drain()
                left -= piece
        elif path == "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n")
            writer.write(b"5\r\nhello\r\n7\r\n, world\r\n0\r\nx-end: yes\r\n\r\n")
        elif path == "/hints":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        elif path == "/half":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
            writer.close()
        else:
            text = f"you asked for {path}".encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(text) + text
            )
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        return None
    line, *fields = raw.decode("latin-1").split("\r\n")[:-2]
    return line, {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(fields.get("content-length", "0")))


# --- clients ----------------------------------------------------------------------------------------------------------
async def curl(made: World, tmp_path: Path, *words: str, path: str = "/", name: str = NAME) -> tuple[int, str, str]:
    """Status of curl, its output, its errors. The certificate is verified against our root."""
    scheme = "https" if made.kind is Plaintext.TLS else "http"
    default = "443" if scheme == "https" else "80"
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "20", "--noproxy", "*", "--cacert", str(tmp_path / "root.pem"),
        "--connect-to", f"{name}:{default}:127.0.0.1:{made.port}", *words, f"{scheme}://{name}{path}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode("latin-1"), err.decode()


def trusting(tmp_path: Path, alpn: Sequence[str] = ("http/1.1",)) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def connected(
    made: World, context: ssl.SSLContext | None, name: str = NAME
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client's connection through the world."""
    return await asyncio.open_connection(
        "127.0.0.1", made.port, ssl=context, server_hostname=name if context is not None else None
    )
