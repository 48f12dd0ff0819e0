"""One flow that was handed over, from the client's first byte to FlowEnded.

hello ◄── client            the client has sent it already: the gate only looked at it
  │
origin's handshake          with the client's name, protocols and lowest version; the certificate's errors are noted
  │      └ fails ─────────► the same kind of failure for the client: alert, reset, end
verdict: fine │ mirror │ block │ accept
  │
leaf ◄── signer             never valid longer than the origin's, flawed where that is flawed; of a service whose
  │                         key is known, its own certificate instead
  │
client's handshake          agreeing to the protocol that the origin agreed to, and to no other
  │      └ fails ─────────► client_rejected
dialogue                    both plaintexts, through mitmproxy
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy.context import Context

from mitmsec.audit.event import BytesSeen, FaultSeen, Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import (
    Flaw,
    FlowEnded,
    HandOver,
    Plaintext,
    TlsClientFacts,
    TlsFacts,
    TlsServerFacts,
)
from mitmsec.core.model import Upstream
from mitmsec.engine import alerts
from mitmsec.engine.contexts import client_session
from mitmsec.engine.dialogue import Dialogue
from mitmsec.engine.hello import read_hello
from mitmsec.engine.leg import Leg
from mitmsec.engine.openssl import TlsFailed, TlsSession
from mitmsec.engine.resumption import Place, Resumption
from mitmsec.engine.seams import Refused
from mitmsec.engine.side import Ended, Side, faulty
from mitmsec.engine.watch import Blocked, Watch

if TYPE_CHECKING:
    import socket

    from OpenSSL import SSL

    from mitmsec.engine.engine import Engine

TLS12 = 0x0303
PIECE_BYTES = 1 << 16  # of a capture
HTTP1_PROTOCOLS = (b"http/1.1", b"http/1.0")


class Conversation:
    """Owns both sockets. `run` never raises but for cancellation, which cuts the flow."""

    def __init__(self, engine: Engine, hand_over: HandOver, client: socket.socket, origin: socket.socket) -> None:
        self._engine, self._hand_over = engine, hand_over
        self._loop = asyncio.get_running_loop()
        recorder = engine.collaborators.recorder
        self._recorder = recorder
        self._front = Leg(client, self._loop, self._on_wire if engine.settings.capture else None)
        self._back = Leg(origin, self._loop)
        self._context: Context = engine.embedded.context(hand_over.client, hand_over.origin, time.time())
        self._facts_client: TlsClientFacts | None = None
        self._facts_server: TlsServerFacts | None = None
        self._flaw: Flaw | None = None
        self._hello: ClientHello | None = None
        self._dialogue: Dialogue | None = None
        self._relief: asyncio.Task[None] | None = None
        self._resumption: Resumption | None = None
        self._if_late = Outcome.CLIENT_CLOSED
        self._service = engine.services.find(hand_over.decision.service)

    async def run(self) -> FlowEnded:
        """Serve the flow; its end."""
        try:
            ended = await self._served()
        except Ended as reason:
            ended = reason
        except asyncio.CancelledError:
            ended = Ended(Outcome.CUT, "the worker was told to stop", reset=True)
        except Exception as error:
            ended = faulty(error, self._hand_over.flow, self._recorder)
        await self._close(ended)
        return self._report(ended)

    async def _served(self) -> Ended:
        front, back = None, None
        if self._hand_over.kind is Plaintext.TLS:
            try:
                async with asyncio.timeout(self._engine.settings.handshake_deadline_s):
                    front, back = await self._handshakes()
            except TimeoutError:
                raise self._late() from None
        return await self._talk(front, back)

    def _late(self) -> Ended:
        late = {Outcome.ORIGIN_TIMEOUT: "the origin", Outcome.FAULT: "the signer"}.get(self._if_late, "the client")
        return Ended(self._if_late, f"{late} took too long for the TLS handshake", reset=True)

    # -- TLS -----------------------------------------------------------------------------------------------------------
    async def _handshakes(self) -> tuple[TlsSession, TlsSession]:
        hello, raw = await read_hello(self._front)
        self._hello = hello
        self._facts_client = TlsClientFacts(sni=hello.sni, ja4=hello.ja4)
        if hello.sni is not None and hello.sni != self._hand_over.name:
            raise Ended(Outcome.FAULT, "the hello names another host than the one that was decided", reset=True)
        back, not_after_s = await self._shake_origin(self._back)
        front = await self._shake_client(raw, back, not_after_s)
        return front, back

    async def _shake_origin(self, leg: Leg, alpn: tuple[bytes, ...] | None = None) -> tuple[TlsSession, int | None]:
        """TLS towards the origin on `leg`, and its certificate's notAfter. Raises Ended."""
        hello = self._hello
        if hello is None:
            raise Ended(Outcome.FAULT, "no hello to speak for", reset=True)
        session = (self._service or self._engine.origins).session(
            self._hand_over.name,
            sni=hello.sni is not None,
            alpn=tuple(name.encode("latin-1") for name in hello.alpn) if alpn is None else alpn,
            tls12=min((v for v in hello.versions if v >= TLS12 and v & 0x0F0F != 0x0A0A), default=TLS12) <= TLS12,
        )
        place = Place(self._hand_over.owner, self._hand_over.name, self._hand_over.origin, hello.sni is not None)
        resumption = self._engine.resumptions.begin(place, session, time.time())
        self._if_late = Outcome.ORIGIN_TIMEOUT
        try:
            while not session.handshake():
                _no_certificate_of(session)
                leg.write(session.outgoing())
                data = await leg.chunk()
                if not data:
                    raise Ended(Outcome.ORIGIN_RESET, "the origin ended in its TLS handshake")
                session.feed(data)
        except TlsFailed as error:
            leg.write(session.outgoing())
            raise self._origin_failed(error) from None
        except OSError as error:
            raise Ended(Outcome.ORIGIN_RESET, f"TLS handshake: {error}", reset=True) from None
        _no_certificate_of(session)
        leg.write(session.outgoing())
        not_after_s = self._judge(session)
        if not_after_s is not None and self._facts_server is not None and self._facts_server.verified:
            resumption.verified(session, not_after_s, time.time())
            self._resumption = self._resumption or resumption
        return session, not_after_s

    def _origin_failed(self, error: TlsFailed) -> Ended:
        """A handshake that the origin broke off, or that broke on what it sent; the client hears it as an alert."""
        text = f"TLS handshake: {error}"
        if self._facts_server is not None:
            return Ended(Outcome.ORIGIN_REFUSED, text, reset=True)  # a further connection; the client has its answer
        self._facts_server = TlsServerFacts(verified=False, error=str(error))
        alert = error.alert if error.alert is not None else alerts.for_local(str(error))
        self._front.write(alerts.record(alert))
        return Ended(Outcome.ORIGIN_REFUSED if error.alert is not None else Outcome.MALFORMED, text)

    def _judge(self, session: TlsSession) -> int | None:
        """Record what the origin showed; the end of its certificate's validity. Raises Ended where policy says so."""
        certificate = session.peer_certificate()
        judged = self._engine.collaborators.judge(session.verify_errors)
        defect = judged if self._service is None else self._service.defect(session)
        flaw = defect.flaw if defect is not None else None
        is_further = self._facts_server is not None
        if is_further and flaw is not None and flaw is not self._flaw:
            raise Ended(Outcome.ORIGIN_CERTIFICATE, "another connection showed another certificate", reset=True)
        self._flaw = flaw
        self._facts_server = TlsServerFacts(
            version=session.version,
            cipher=session.cipher,
            alpn=session.alpn.decode("latin-1") or None,
            certificate_sha256=certificate[0] if certificate else None,
            verified=defect is None,
            resumed=True if session.resumed else None,
            error=defect.text if defect is not None else None,
        )
        if defect is not None and (self._service is not None or self._hand_over.decision.upstream is Upstream.BLOCK):
            raise Ended(Outcome.ORIGIN_CERTIFICATE, defect.text, reset=True)
        return certificate[1] if certificate else None

    async def _shake_client(self, hello: bytes, back: TlsSession, not_after_s: int | None) -> TlsSession:
        context = await self._leaf(not_after_s) if self._service is None else self._service.front
        self._if_late = Outcome.CLIENT_CLOSED
        session = client_session(context, back.alpn)
        session.owner = self._hand_over.flow
        session.feed(hello)
        try:
            while not session.handshake():
                self._front.write(session.outgoing())
                data = await self._front.chunk()
                if not data:
                    raise self._rejected("ended in the TLS handshake, after it saw the certificate")
                session.feed(data)
        except TlsFailed as error:
            self._front.write(session.outgoing())
            if error.alert is None:
                raise Ended(Outcome.MALFORMED, f"client's TLS handshake: {error}") from None
            raise self._rejected(f"TLS: {error}") from None
        except OSError as error:
            raise self._rejected(str(error)) from None
        self._front.write(session.outgoing())
        self._note_client(session)
        return session

    async def _leaf(self, not_after_s: int | None) -> SSL.Context:
        """The context with a certificate that is made for this flow. Raises Ended."""
        mirrors = self._hand_over.decision.upstream is Upstream.MIRROR
        flaw = self._flaw if mirrors else None
        if not mirrors and not_after_s is not None and not_after_s <= time.time():
            not_after_s = None  # accepted in spite of it
        self._if_late = Outcome.FAULT
        try:
            return await self._engine.leaves.context(
                self._hand_over.flow, self._hand_over.name, not_after_s=not_after_s, flaw=flaw
            )
        except Refused as error:
            self._recorder.record(
                FaultSeen(what="no_certificate", detail=str(error), failed="closed", flow=self._hand_over.flow)
            )
            raise Ended(Outcome.FAULT, str(error), reset=True) from None

    @property
    def _mirrors_flaw(self) -> bool:
        return self._flaw is not None and self._hand_over.decision.upstream is Upstream.MIRROR

    def _rejected(self, why: str) -> Ended:
        if self._mirrors_flaw:
            return Ended(Outcome.ORIGIN_CERTIFICATE, why)
        return Ended(Outcome.CLIENT_REJECTED, why)

    def _note_client(self, session: TlsSession) -> None:
        hello = self._hello
        self._facts_client = TlsClientFacts(
            version=session.version,
            cipher=session.cipher,
            sni=hello.sni if hello else None,
            alpn=session.alpn.decode("latin-1") or None,
            ja4=hello.ja4 if hello else None,
        )

    # -- plaintext -----------------------------------------------------------------------------------------------------
    async def _talk(self, front: TlsSession | None, back: TlsSession | None) -> Ended:
        server = self._server(back)
        client = self._context.client
        if front is not None:
            _describe(client, front)
            client.sni = self._hello.sni if self._hello else None
        self._context.server = server
        try:
            watch = Watch(
                self._hand_over.flow,
                self._hand_over.decision,
                self._engine.collaborators.inspectors,
                self._engine.settings.on_failure,
                self._recorder,
            )
        except Blocked as blocked:
            raise Ended(Outcome.BLOCKED, str(blocked), reset=True) from None
        self._dialogue = Dialogue(
            self._hand_over,
            self._context,
            Side(self._front, front, client),
            Side(self._back, back, server),
            watch=watch,
            recorder=self._recorder,
            connect=self._connect,
            loop=self._loop,
        )
        self._dialogue.start(is_http=_is_http(front))
        ended = await self._dialogue.ended
        if self._resumption is not None and back is not None:
            self._resumption.finish(back, time.time())
        if ended.outcome is Outcome.CLIENT_REJECTED:
            return self._rejected(str(ended))
        if front is None or self._dialogue.was_heard or ended.outcome is not Outcome.COMPLETED:
            return ended
        if ended.reset and not self._dialogue.was_answered:  # those of GnuTLS look only after the handshake
            return self._rejected("reset by the client, which had said nothing since it saw the certificate")
        return self._rejected(str(ended) or "closed by the client once it had seen it") if self._mirrors_flaw else ended

    def _server(self, session: TlsSession | None) -> Server:
        origin = self._hand_over.origin
        server = Server(address=(origin.address, origin.port))
        server.peername = server.address
        server.timestamp_start = time.time()
        server.state = ConnectionState.OPEN
        if session is not None:
            _describe(server, session)
            server.sni = self._hand_over.name
        return server

    async def _connect(self, connection: Server) -> Side:
        """Another connection to the same origin, from the gate. Raises Ended."""
        try:
            sock = await self._engine.collaborators.gate.connect(self._hand_over.flow)
        except Refused as error:
            raise Ended(Outcome.ORIGIN_UNREACHABLE, str(error)) from None
        leg = Leg(sock, self._loop)
        if self._hand_over.kind is not Plaintext.TLS:
            return Side(leg, None, connection)
        agreed = self._context.client.alpn
        try:
            async with asyncio.timeout(self._engine.settings.handshake_deadline_s):
                session, _ = await self._shake_origin(leg, (agreed,) if agreed else ())
            if session.alpn != (agreed or b""):
                raise Ended(Outcome.ORIGIN_REFUSED, "another connection speaks another protocol")
        except TimeoutError:
            leg.abort()
            raise Ended(Outcome.ORIGIN_TIMEOUT, "the origin did not finish its TLS handshake") from None
        except BaseException:
            leg.abort()
            raise
        _describe(connection, session)
        return Side(leg, session, connection)

    # -- capture -------------------------------------------------------------------------------------------------------
    def _on_wire(self, sent: bool, data: bytes) -> None:
        """Raw bytes of the client's leg. What we send is what the program receives."""
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self._recorder.record(BytesSeen(flow=self._hand_over.flow, sent=not sent, data=piece))
        if self._dialogue is not None and self._relief is None and self._recorder.congested:
            self._dialogue.hold(True)
            self._relief = self._loop.create_task(self._relieved())

    async def _relieved(self) -> None:
        await self._recorder.relieved()
        self._relief = None
        if self._dialogue is not None:
            self._dialogue.hold(False)

    # -- the end -------------------------------------------------------------------------------------------------------
    async def _close(self, ended: Ended) -> None:
        """Both legs are closed afterwards."""
        if self._dialogue is not None:
            self._dialogue.end(ended)
        if self._relief is not None:
            self._relief.cancel()
        self._back.abort() if ended.reset else self._back.close()
        if ended.reset:
            self._front.abort()
        elif not self._front.closed:
            closed = asyncio.Event()
            self._front.on_closed = closed.set
            self._front.on_data = _ignore
            self._front.on_end = None
            self._front.close()
            try:
                if not self._front.closed:
                    await closed.wait()
            except asyncio.CancelledError:  # told to stop while the client takes its time
                self._front.abort()

    def _report(self, ended: Ended) -> FlowEnded:
        facts = None
        if self._facts_client is not None:
            facts = TlsFacts(client=self._facts_client, server=self._facts_server)
        return FlowEnded(
            flow=self._hand_over.flow,
            bytes_sent=self._front.received,
            bytes_received=self._front.sent,
            outcome=ended.outcome,
            error=ended.error,
            tls=facts,
            reset=ended.reset,
        )


def _no_certificate_of(session: TlsSession) -> None:
    """A service that wants the peer's certificate would take it for somebody without one. Raises Ended."""
    if session.is_asked:
        raise Ended(Outcome.ORIGIN_REFUSED, "the service asks for a client's certificate; let it pass", reset=True)


def _describe(connection: Connection, session: TlsSession) -> None:
    """What mitmproxy's layers read of a TLS connection that was made outside of them."""
    connection.tls = True
    connection.alpn = session.alpn
    connection.timestamp_tls_setup = time.time()


def _is_http(front: TlsSession | None) -> bool | None:
    """None where only the first bytes can tell."""
    if front is None:
        return True
    return None if not front.alpn else front.alpn == b"h2" or front.alpn in HTTP1_PROTOCOLS


def _ignore(_data: bytes) -> None:
    return
