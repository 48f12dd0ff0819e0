"""One flow of QUIC that was handed over: HTTP/3 on both legs, from the client's hello to FlowEnded.

    client's first Initial      it waits: the gate has read the hello
      │
    origin's handshake          for the decided name; its certificate is judged as over TCP
      │      └ fails, asks for a certificate, does not hold ──► end, unanswered: the gate tells the client to use TCP
    leaf ◄── signer
      │
    client's handshake          HTTP/3 and nothing else
      │      └ fails ─────────► client_rejected
    dialogue

Whatever cannot be had over QUIC as it is over TCP ends the flow before its client has heard anything: the program
connects by TCP, and there it is as the policy says. So a certificate that does not hold is never mirrored here.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import time
from typing import TYPE_CHECKING

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.tls import CipherSuite
from mitmproxy.proxy.context import Context
from msgspec.structs import replace
from OpenSSL import SSL, crypto

from mitmsec.audit.event import FaultSeen, Outcome
from mitmsec.core.clienthello import ClientHello, parse_message
from mitmsec.core.leaf_choice import leaf_key
from mitmsec.core.messages import FlowEnded, HandOver, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Refusal
from mitmsec.engine import openssl
from mitmsec.engine.chains import proof_of
from mitmsec.engine.embedded import server_of
from mitmsec.engine.quic.connection import Connection
from mitmsec.engine.quic.dialogue import INTERNAL_ERROR, QuicDialogue
from mitmsec.engine.quic.leg import DATAGRAM_LIMIT_BYTES, PEER, QuicFailed, QuicLeg
from mitmsec.engine.refusals import by_alert
from mitmsec.engine.seams import LeafQuestion, Refused
from mitmsec.engine.side import Ended, ending_of
from mitmsec.engine.strength import Strength, excess, floor_of
from mitmsec.engine.watch import Blocked, Watch

if TYPE_CHECKING:
    from mitmsec.engine.engine import Engine

HTTP3 = "h3"
TLS13 = "TLSv1.3"
ORIGIN_DEADLINE_S = 10.0  # who is not reached by QUIC may be by TCP, which the program waits for
IDLE_S = 60.0
GROUP_BITS = 128  # of X25519 and P-256, which are all that aioquic has towards clients
SUITES_256 = [CipherSuite.AES_256_GCM_SHA384, CipherSuite.CHACHA20_POLY1305_SHA256]
CONNECTION_ID_BYTES = 8
NEAR_BYTES = 1350  # of a datagram to a program on this machine; towards origins it is 1200, which passes everywhere


class QuicConversation:
    """Owns both sockets. `run` never raises but for cancellation, which cuts the flow."""

    def __init__(self, engine: Engine, hand_over: HandOver, client: socket.socket, origin: socket.socket) -> None:
        self._engine, self._hand_over = engine, hand_over
        self._client, self._origin = client, origin
        self._loop, self._recorder = asyncio.get_running_loop(), engine.collaborators.recorder
        self._context: Context = engine.embedded.context(
            hand_over.flow, hand_over.client, hand_over.origin, time.time()
        )
        self._front: QuicLeg | None = None
        self._back: QuicLeg | None = None
        self._dialogue: QuicDialogue | None = None
        self._facts_client = TlsClientFacts()
        self._facts_server: TlsServerFacts | None = None

    async def run(self) -> FlowEnded:
        """Serve the flow; its end."""
        ended = await ending_of(self._served(), self._hand_over.flow, self._recorder)
        if self._dialogue is not None:
            self._dialogue.end(ended)
        self._close()
        return self._report(ended)

    async def _served(self) -> Ended:
        hello = parse_message(self._hand_over.hello)
        if not isinstance(hello, ClientHello) or hello.sni != self._hand_over.name:
            raise Ended(Outcome.FAULT, "the hello names another host than the one that was decided", reset=True)
        self._facts_client = TlsClientFacts(sni=hello.sni, ja4=hello.ja4)
        try:
            async with asyncio.timeout(self._engine.settings.handshake_deadline_s):
                back, not_after_s = await self._shake_origin(hello)
                front = await self._shake_client(hello, back, not_after_s)
        except TimeoutError:
            raise Ended(Outcome.CLIENT_CLOSED, "the client took too long for the handshake", reset=True) from None
        return await self._talk(front, back)

    # -- the origin's leg ----------------------------------------------------------------------------------------------
    async def _shake_origin(self, hello: ClientHello) -> tuple[QuicLeg, int]:
        """QUIC towards the origin, whose certificate holds, and its notAfter. Raises Ended."""
        encapsulation = self._engine.collaborators.encapsulation
        connection = Connection(_towards(self._hand_over.name, hello), encapsulation=encapsulation)
        back = self._back = QuicLeg(self._origin, self._loop, connection)
        connection.connect(PEER, self._loop.time())
        try:
            async with asyncio.timeout(ORIGIN_DEADLINE_S):
                await back.shake()
        except QuicFailed as failed:
            raise self._origin_failed(connection, failed) from None
        except TimeoutError:
            raise Ended(Outcome.ORIGIN_TIMEOUT, "the origin did not finish its handshake", reset=True) from None
        if connection.tls.alpn_negotiated != HTTP3:
            raise Ended(Outcome.ORIGIN_REFUSED, "the origin speaks no HTTP/3", reset=True)
        return back, await self._judge(connection)

    def _origin_failed(self, connection: Connection, failed: QuicFailed) -> Ended:
        self._facts_server = TlsServerFacts(verified=False, error=str(failed))
        if connection.is_asked:
            self._facts_server = replace(self._facts_server, asks_certificate=True)
            return Ended(Outcome.ORIGIN_REFUSED, "the origin asks for a client's certificate", reset=True)
        outcome = Outcome.ORIGIN_REFUSED if failed.by_peer else Outcome.MALFORMED
        return Ended(outcome, f"QUIC handshake: {failed}", reset=True)

    async def _judge(self, connection: Connection) -> int:
        """Record what the origin showed; its certificate's notAfter. Raises Ended where that does not hold."""
        name, decision = self._hand_over.name, self._hand_over.decision
        shown = connection.peer_chain
        proof = proof_of(shown, name, self._engine.root_certificates)
        judged = await self._engine.collaborators.judge(proof, decision)
        self._facts_server = TlsServerFacts(
            version=TLS13,
            cipher=connection.cipher,
            group=connection.group,
            alpn=HTTP3,
            certificate_sha256=hashlib.sha256(proof.chain[0]).hexdigest() if proof.chain else None,
            verified=judged.defect is None,
            error=judged.defect.text if judged.defect is not None else None,
            note=judged.note,
        )
        if judged.defect is not None:
            raise Ended(Outcome.ORIGIN_CERTIFICATE, judged.defect.text, reset=True)
        return openssl.not_after_s(crypto.X509.from_cryptography(shown[0]))

    # -- the client's leg ----------------------------------------------------------------------------------------------
    async def _shake_client(self, hello: ClientHello, back: QuicLeg, not_after_s: int) -> QuicLeg:
        configuration = await self._as_server(hello, not_after_s)
        first, destination = await self._first_initial()
        front = self._front = QuicLeg(self._client, self._loop, Connection(configuration, destination))
        front.heard(first)
        try:
            await front.shake()
        except QuicFailed as failed:
            raise self._client_failed(failed) from None
        client, origin = (_strength(leg.connection) for leg in (front, back))
        self._facts_client = replace(
            self._facts_client,
            version=TLS13,
            cipher=front.connection.cipher,
            alpn=HTTP3,
            exceeds_server=excess(client, origin),
        )
        return front

    async def _as_server(self, hello: ClientHello, not_after_s: int) -> QuicConfiguration:
        """With the certificate that is made for this flow. Raises Ended."""
        key = leaf_key(hello, tls13=True)
        question = LeafQuestion(flow=self._hand_over.flow, name=self._hand_over.name, key=key, not_after_s=not_after_s)
        try:
            leaf = await self._engine.collaborators.certifier.leaf(question)
            own, *issuers = (openssl.certificate(der).to_cryptography() for der in leaf.chain)
            private = openssl.private_key(leaf.key)
        except (Refused, ValueError, SSL.Error, crypto.Error) as error:
            flow = self._hand_over.flow
            self._recorder.record(FaultSeen(what="no_certificate", detail=str(error), failed="closed", flow=flow))
            raise Ended(Outcome.FAULT, str(error), reset=True) from None
        made = QuicConfiguration(is_client=False, alpn_protocols=[HTTP3], idle_timeout=IDLE_S)
        made.max_datagram_size = NEAR_BYTES
        made.certificate, made.certificate_chain, made.private_key = own, issuers, private
        return made

    async def _first_initial(self) -> tuple[bytes, bytes]:
        """The client's first Initial, and the connection id that it is for. What came before it is sent again."""
        self._client.setblocking(False)
        while datagram := await self._loop.sock_recv(self._client, DATAGRAM_LIMIT_BYTES):
            try:
                header = pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
            except ValueError:
                continue
            if header.packet_type is QuicPacketType.INITIAL:
                return datagram, header.destination_cid
        raise Ended(Outcome.CLIENT_CLOSED, "ended before the handshake", reset=True)

    def _client_failed(self, failed: QuicFailed) -> Ended:
        if not failed.by_peer:
            return Ended(Outcome.MALFORMED, f"client's QUIC handshake: {failed}", reset=True)
        refusal = by_alert(failed.alert) if failed.alert is not None else Refusal.CLOSED
        self._facts_client = replace(self._facts_client, refusal=refusal)
        return Ended(Outcome.CLIENT_REJECTED, f"TLS: {failed}")

    # -- plaintext -----------------------------------------------------------------------------------------------------
    async def _talk(self, front: QuicLeg, back: QuicLeg) -> Ended:
        order = self._hand_over
        server = self._context.server = server_of(order.flow, order.origin, order.name, None)
        for connection in (self._context.client, server):
            connection.transport_protocol, connection.tls, connection.alpn = "udp", True, HTTP3.encode()
            connection.sni, connection.timestamp_tls_setup = order.name, time.time()
        inspectors, on_failure = self._engine.collaborators.inspectors, self._engine.settings.on_failure
        try:
            watch = Watch(
                order.flow,
                order.decision,
                inspectors,
                on_failure,
                self._recorder,
                self._engine.addons,
                self._engine.quarantine,
            )
        except Blocked as blocked:
            raise Ended(Outcome.BLOCKED, str(blocked), reset=True) from None
        dialogue = self._dialogue = QuicDialogue(
            order, self._context, front, back, watch=watch, recorder=self._recorder, loop=self._loop
        )
        dialogue.start()
        ended = await dialogue.ended
        if ended.outcome is Outcome.CLIENT_REJECTED:
            self._facts_client = replace(self._facts_client, refusal=Refusal.ALERT)
        return ended

    # -- the end -------------------------------------------------------------------------------------------------------
    def _close(self) -> None:
        for leg, sock in ((self._front, self._client), (self._back, self._origin)):
            if leg is None:
                sock.close()
            else:
                leg.close(INTERNAL_ERROR)

    def _report(self, ended: Ended) -> FlowEnded:
        return FlowEnded(
            flow=self._hand_over.flow,
            bytes_sent=self._front.received if self._front is not None else 0,
            bytes_received=self._front.sent if self._front is not None else 0,
            outcome=ended.outcome,
            error=ended.error,
            tls=TlsFacts(client=self._facts_client, server=self._facts_server),
            was_heard=self._dialogue is not None and self._dialogue.was_heard,
            reset=ended.reset,
        )


def _towards(name: str, hello: ClientHello) -> QuicConfiguration:
    """As the client would speak to it, and no weaker. Raises Ended where aioquic cannot."""
    floor = floor_of(hello)
    if floor.group_bits > GROUP_BITS or floor.is_hybrid:
        raise Ended(Outcome.FAULT, "the client takes only key exchanges that cannot be had over QUIC", reset=True)
    made = QuicConfiguration(
        is_client=True, alpn_protocols=[HTTP3], server_name=name, idle_timeout=IDLE_S, verify_mode=ssl.CERT_NONE
    )
    if floor.cipher_bits > 128:
        made.cipher_suites = SUITES_256
    return made


def _strength(connection: Connection) -> Strength:
    return Strength(version=TLS13, cipher_bits=128 if "_128_" in connection.cipher else 256)
