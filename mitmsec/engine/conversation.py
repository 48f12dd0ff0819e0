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
from functools import partial
from typing import TYPE_CHECKING

from mitmproxy.connection import Server
from mitmproxy.proxy.context import Context
from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.leaf_choice import leaf_key
from mitmsec.core.messages import (
    Flaw,
    FlowEnded,
    HandOver,
    Plaintext,
    TlsClientFacts,
    TlsFacts,
    TlsServerFacts,
)
from mitmsec.core.model import Refusal, Upstream
from mitmsec.engine import alerts, client_handshake
from mitmsec.engine.client_handshake import Rejected, leaf_context
from mitmsec.engine.contexts import client_session
from mitmsec.engine.dialogue import Dialogue
from mitmsec.engine.embedded import describe, server_of
from mitmsec.engine.facts import client_facts, server_facts
from mitmsec.engine.firstline import is_http
from mitmsec.engine.hello import demand, read_hello
from mitmsec.engine.leg import Leg, part
from mitmsec.engine.openssl import TlsFailed, TlsSession
from mitmsec.engine.origin_handshake import shake
from mitmsec.engine.refusals import after_handshake
from mitmsec.engine.resumption import Place, Resumption
from mitmsec.engine.seams import Refused
from mitmsec.engine.side import Ended, Side, ending_of
from mitmsec.engine.strength import floor_of, has_hybrid, takes_either
from mitmsec.engine.watch import Blocked, Watch
from mitmsec.engine.wire import Wire

if TYPE_CHECKING:
    import socket

    from OpenSSL import SSL

    from mitmsec.engine.engine import Engine

MUTE = "its own does not hold, so it gets none, and nothing else"


class Conversation:
    """Owns both sockets. `run` never raises but for cancellation, which cuts the flow."""

    def __init__(self, engine: Engine, hand_over: HandOver, client: socket.socket, origin: socket.socket) -> None:
        self._engine, self._hand_over = engine, hand_over
        self._loop = asyncio.get_running_loop()
        recorder = engine.collaborators.recorder
        self._recorder = recorder
        self._wire = Wire(hand_over.flow, recorder, self._loop, self._hold)
        self._front = Leg(client, self._loop, self._wire.passed if engine.settings.capture else None)
        self._back = Leg(origin, self._loop)
        self._context: Context = engine.embedded.context(
            hand_over.flow, hand_over.client, hand_over.origin, time.time()
        )
        self._facts_client: TlsClientFacts | None = None
        self._facts_server: TlsServerFacts | None = None
        self._flaw: Flaw | None = None
        self._hello: ClientHello | None = None
        self._dialogue: Dialogue | None = None
        self._resumption: Resumption | None = None
        self._if_late = Outcome.CLIENT_CLOSED
        self._is_mute = False  # nothing more is said to the origin
        self._service = engine.services.find(hand_over.decision.service)
        self._own = engine.identities.find(hand_over.decision.identity)  # what origins are shown that ask for it

    async def run(self) -> FlowEnded:
        """Serve the flow; its end."""
        ended = await ending_of(self._served(), self._hand_over.flow, self._recorder)
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
        demand(self._front, hello, self._hand_over.decision.min_tls)
        back, not_after_s = await self._shake_origin(self._back)
        front = await self._shake_client(raw, back, not_after_s)
        if self._is_mute:
            raise Ended(Outcome.ORIGIN_CERTIFICATE, f"it asks for a client's certificate: {MUTE}", reset=True)
        return front, back

    async def _shake_origin(self, leg: Leg, alpn: tuple[bytes, ...] | None = None) -> tuple[TlsSession, int | None]:
        """TLS towards the origin on `leg`, and its certificate's notAfter. Raises Ended."""
        hello = self._hello
        if hello is None:
            raise Ended(Outcome.FAULT, "no hello to speak for", reset=True)
        place, now_s = Place.of(self._hand_over, sni=hello.sni is not None), time.time()
        # A hybrid share takes long to make. An origin that took none has to ask, if the client offers none itself.
        share = has_hybrid(hello) or not self._engine.resumptions.is_classical(place, now_s)
        session = self._towards_origin(hello, alpn, share=share)
        resumption = self._engine.resumptions.begin(place, session, now_s)
        self._if_late = Outcome.ORIGIN_TIMEOUT
        try:
            self._is_mute = not await shake(leg, session, self._judge)
        except TlsFailed as error:
            leg.write(session.outgoing())
            raise self._origin_failed(error) from None
        except OSError as error:
            raise Ended(Outcome.ORIGIN_RESET, f"TLS handshake: {error}", reset=True) from None
        certificate = session.peer_certificate()
        not_after_s = certificate[1] if certificate else None
        if not_after_s is not None and self._facts_server is not None and self._facts_server.verified:
            resumption.verified(session, not_after_s, time.time())
            self._resumption = self._resumption or resumption
        return session, not_after_s

    def _towards_origin(self, hello: ClientHello, alpn: tuple[bytes, ...] | None, *, share: bool) -> TlsSession:
        """As the client would speak to it, and no weaker. Raises Ended."""
        order, sni = self._hand_over, hello.sni is not None
        name, floor = order.name, floor_of(hello, order.decision.min_tls)
        alpn = tuple(name.encode("latin-1") for name in hello.alpn) if alpn is None else alpn
        if self._service is not None:
            return self._service.session(name, sni=sni, alpn=alpn, tls12=floor.tls12)
        try:
            origins = self._own or self._engine.origins
            return origins.session(name, sni=sni, alpn=alpn, tls12=floor.tls12, floor=floor, share=share)
        except TlsFailed as error:
            raise self._origin_failed(error) from None

    def _origin_failed(self, error: TlsFailed) -> Ended:
        """A handshake that the origin broke off, or that broke on what it sent; the client hears it as an alert."""
        text = f"TLS handshake: {error}"
        if self._facts_server is not None:
            return Ended(Outcome.ORIGIN_REFUSED, text, reset=True)  # a further connection; the client has its answer
        self._facts_server = TlsServerFacts(verified=False, error=str(error))
        alert = error.alert if error.alert is not None else alerts.for_local(str(error))
        self._front.write(alerts.record(alert))
        return Ended(Outcome.ORIGIN_REFUSED if error.alert is not None else Outcome.MALFORMED, text)

    async def _judge(self, session: TlsSession) -> bool:
        """Record what the origin showed; whether more is said to it. Raises Ended where policy says so."""
        is_asked, session.is_asked, note = session.is_asked, False, None
        if self._service is None:
            judged = await self._engine.collaborators.judge(session.proof(), self._hand_over.decision)
            defect, note = judged.defect, judged.note
        else:
            defect = self._service.defect(session)
        flaw, is_further = defect.flaw if defect is not None else None, self._facts_server is not None
        if is_further and flaw is not None and (flaw is not self._flaw or (is_asked and not self._is_proven)):
            raise Ended(Outcome.ORIGIN_CERTIFICATE, "another connection showed another certificate", reset=True)
        if not is_further:  # what the program was told of the first stays on record
            self._flaw = flaw
            is_shown = is_asked and self._is_proven and self._own is not None
            identity = self._hand_over.decision.identity if is_shown else None
            self._facts_server = server_facts(session, defect, note, identity)
        if defect is not None and (self._service is not None or self._hand_over.decision.upstream is Upstream.BLOCK):
            raise Ended(Outcome.ORIGIN_CERTIFICATE, defect.text, reset=True)
        if is_asked and self._is_proven and self._own is None:
            raise self._no_certificate()
        return not is_asked or self._is_proven

    @property
    def _is_proven(self) -> bool:
        """The origin is whom it says, or the policy takes it for that."""
        return self._flaw is None or self._hand_over.decision.upstream is Upstream.ACCEPT

    def _no_certificate(self) -> Ended:
        """Who wants a client's certificate would take the program for somebody without one."""
        self._facts_server = replace(self._facts_server or TlsServerFacts(), asks_certificate=True)
        who = "origin" if self._service is None else "service"
        return Ended(Outcome.ORIGIN_REFUSED, f"the {who} asks for a client's certificate; let it pass", reset=True)

    async def _shake_client(self, hello: bytes, back: TlsSession, not_after_s: int | None) -> TlsSession:
        context = await self._leaf(not_after_s, back) if self._service is None else self._service.front
        self._if_late = Outcome.CLIENT_CLOSED
        choice = self._hello is not None and takes_either(self._hello)
        session = client_session(context, back.alpn, origin=back.strength, choice=choice)
        session.owner = self._hand_over.flow
        try:
            await client_handshake.shake(self._front, session, hello)
        except Rejected as rejected:
            raise self._rejected(rejected.refusal, str(rejected)) from None
        self._facts_client = client_facts(session, self._hello, back)
        return session

    async def _leaf(self, not_after_s: int | None, back: TlsSession) -> SSL.Context:
        """The context with a certificate that is made for this flow. Raises Ended."""
        mirrors = self._hand_over.decision.upstream is Upstream.MIRROR
        flaw = self._flaw if mirrors else None
        if not mirrors and not_after_s is not None and not_after_s <= time.time():
            not_after_s = None  # accepted in spite of it
        key = leaf_key(self._hello, tls13=back.strength.version == "TLSv1.3")
        self._if_late = Outcome.FAULT
        leaves = self._engine.leaves
        return await leaf_context(leaves, self._hand_over, self._recorder, key=key, not_after_s=not_after_s, flaw=flaw)

    @property
    def _mirrors_flaw(self) -> bool:
        return self._flaw is not None and self._hand_over.decision.upstream is Upstream.MIRROR

    def _rejected(self, refusal: Refusal | None, why: str) -> Ended:
        if self._mirrors_flaw:
            return Ended(Outcome.ORIGIN_CERTIFICATE, why)
        self._facts_client = replace(self._facts_client or TlsClientFacts(), refusal=refusal)
        return Ended(Outcome.CLIENT_REJECTED, why)

    # -- plaintext -----------------------------------------------------------------------------------------------------
    async def _talk(self, front: TlsSession | None, back: TlsSession | None) -> Ended:
        server = server_of(self._hand_over.flow, self._hand_over.origin, self._hand_over.name, back)
        client = self._context.client
        if front is not None:
            describe(client, front)
            client.sni = self._hello.sni if self._hello else None
        self._context.server = server
        try:
            watch = Watch(
                self._hand_over.flow,
                self._hand_over.decision,
                self._engine.collaborators.inspectors,
                self._engine.settings.on_failure,
                self._recorder,
                self._engine.addons,
                self._engine.quarantine,
            )
        except Blocked as blocked:
            raise Ended(Outcome.BLOCKED, str(blocked), reset=True) from None
        keep_ticket = partial(self._keep_ticket, back)
        self._dialogue = Dialogue(
            self._hand_over,
            self._context,
            Side(self._front, front, client),
            Side(self._back, back, server),
            watch=watch,
            recorder=self._recorder,
            connect=self._connect,
            answered=keep_ticket,
            loop=self._loop,
        )
        shaken_s = self._loop.time()
        self._dialogue.start(is_http=_is_http(front))
        ended = await self._dialogue.ended
        keep_ticket()
        if back is not None and back.is_asked and self._is_proven:
            self._facts_server = replace(self._facts_server or TlsServerFacts(), asks_certificate=True)
        return ended if front is None else self._left(ended, self._dialogue, self._loop.time() - shaken_s)

    def _keep_ticket(self, back: TlsSession | None) -> None:
        if self._resumption is not None and back is not None:
            self._resumption.keep(back, time.time())

    def _left(self, ended: Ended, dialogue: Dialogue, waited_s: float) -> Ended:
        """How the client has, seen from our certificate. Some look at that only when the handshake is done."""
        is_said = dialogue.was_heard or dialogue.was_answered
        refusal = after_handshake(ended, was_anything_said=is_said, waited_s=waited_s)
        if refusal is Refusal.ALERT:
            return self._rejected(refusal, str(ended))
        if refusal is Refusal.RESET:
            return self._rejected(refusal, "reset by the client, which had said nothing since it saw the certificate")
        if self._mirrors_flaw and not dialogue.was_heard and ended.outcome is Outcome.COMPLETED:
            return self._rejected(None, str(ended) or "closed by the client once it had seen it")
        if self._facts_client is not None:
            self._facts_client = replace(self._facts_client, refusal=refusal)
        return ended

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
        describe(connection, session)
        return Side(leg, session, connection)

    def _hold(self, held: bool) -> bool:
        if self._dialogue is not None:
            self._dialogue.hold(held)
        return self._dialogue is not None

    # -- the end -------------------------------------------------------------------------------------------------------
    async def _close(self, ended: Ended) -> None:
        """Both legs are closed afterwards."""
        if self._dialogue is not None:
            self._dialogue.end(ended)
        self._wire.stop()
        await part(self._front, self._back, reset=ended.reset)

    def _report(self, ended: Ended) -> FlowEnded:
        client, server = self._facts_client, self._facts_server
        facts = TlsFacts(client=client, server=server) if client is not None else None
        return FlowEnded(
            flow=self._hand_over.flow,
            bytes_sent=self._front.received,
            bytes_received=self._front.sent,
            outcome=ended.outcome,
            error=ended.error,
            tls=facts,
            was_heard=self._dialogue is not None and self._dialogue.was_heard,
            reset=ended.reset,
        )


def _is_http(front: TlsSession | None) -> bool | None:
    """None where only the first bytes can tell."""
    return True if front is None else is_http(front.alpn)
