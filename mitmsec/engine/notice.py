"""One blocked flow whose client is told so inside TLS: every request is answered with a page, and there is no origin.

    hello ─► leaf for the decided name ◄── signer ─► client's handshake ─► dialogue without an origin: 403, 403, …
                                                          └ its protocol is not HTTP ──► a reset

What the client says is not kept, be there a capture or not; that it asked for something is on record.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mitmproxy.connection import ConnectionState, Server
from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.leaf_choice import leaf_key
from mitmsec.core.messages import FlowEnded, HandOver, TlsClientFacts, TlsFacts
from mitmsec.engine.client_handshake import Rejected, leaf_context, shake
from mitmsec.engine.contexts import client_session
from mitmsec.engine.dialogue import Dialogue
from mitmsec.engine.embedded import describe, server_of
from mitmsec.engine.facts import client_facts
from mitmsec.engine.firstline import HTTP_PROTOCOLS, is_http
from mitmsec.engine.hello import read_hello
from mitmsec.engine.leg import Leg, part
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.refusals import after_handshake
from mitmsec.engine.side import Ended, Side, faulty
from mitmsec.engine.watch import Watch

if TYPE_CHECKING:
    import socket

    from mitmsec.engine.engine import Engine

SHOWN_S = 60.0  # a client that keeps its connection does without it from then on


class Notice:
    """Owns the client's socket. `run` never raises but for cancellation, which cuts the flow."""

    def __init__(self, engine: Engine, hand_over: HandOver, client: socket.socket) -> None:
        self._engine, self._hand_over = engine, hand_over
        self._loop = asyncio.get_running_loop()
        self._recorder = engine.collaborators.recorder
        self._front = Leg(client, self._loop)
        self._facts: TlsClientFacts | None = None
        self._dialogue: Dialogue | None = None

    async def run(self) -> FlowEnded:
        """Serve the flow; its end."""
        try:
            ended = await self._served()
        except Ended as reason:
            ended = reason
        except Rejected as rejected:
            self._facts = replace(self._facts or TlsClientFacts(), refusal=rejected.refusal)
            ended = Ended(Outcome.CLIENT_REJECTED, str(rejected))
        except asyncio.CancelledError:
            ended = Ended(Outcome.CUT, "the worker was told to stop", reset=True)
        except Exception as error:
            ended = faulty(error, self._hand_over.flow, self._recorder)
        if self._dialogue is not None:
            self._dialogue.end(ended)
        await part(self._front, None, reset=ended.reset)
        return FlowEnded(
            flow=self._hand_over.flow,
            bytes_sent=self._front.received,
            bytes_received=self._front.sent,
            outcome=ended.outcome,
            error=ended.error,
            tls=TlsFacts(client=self._facts) if self._facts is not None else None,
            was_heard=self._dialogue is not None and self._dialogue.was_heard,
            reset=ended.reset,
        )

    async def _served(self) -> Ended:
        try:
            async with asyncio.timeout(self._engine.settings.handshake_deadline_s):
                hello, session = await self._shake()
        except TimeoutError:
            raise Ended(Outcome.BLOCKED, "the TLS handshake took too long", reset=True) from None
        return await self._tell(hello, session)

    async def _shake(self) -> tuple[ClientHello, TlsSession]:
        """Raises Ended, Rejected."""
        order = self._hand_over
        hello, raw = await read_hello(self._front)
        self._facts = TlsClientFacts(sni=hello.sni, ja4=hello.ja4)
        if hello.sni is not None and hello.sni != order.name:
            raise Ended(Outcome.FAULT, "the hello names another host than the one that was decided", reset=True)
        key = leaf_key(hello, tls13=True)
        context = await leaf_context(self._engine.leaves, order, self._recorder, key=key)
        offered = {name.encode("latin-1") for name in hello.alpn}
        session = client_session(context, next((one for one in HTTP_PROTOCOLS if one in offered), b""))
        await shake(self._front, session, raw)
        self._facts = client_facts(session, hello)
        return hello, session

    async def _tell(self, hello: ClientHello, session: TlsSession) -> Ended:
        order, settings = self._hand_over, self._engine.settings
        context = self._engine.embedded.context(order.flow, order.client, order.origin, time.time())
        describe(context.client, session)
        context.client.sni = hello.sni
        context.server = server_of(order.flow, order.origin, order.name, None)
        context.server.state = ConnectionState.CLOSED
        dialogue = self._dialogue = Dialogue(
            order,
            context,
            Side(self._front, session, context.client),
            None,
            watch=Watch(order.flow, order.decision, {}, settings.on_failure, self._recorder),
            recorder=self._recorder,
            connect=_nowhere,
            answered=_never,
            loop=self._loop,
        )
        shaken_s = self._loop.time()
        timer = self._loop.call_later(SHOWN_S, dialogue.end, Ended(Outcome.BLOCKED))
        try:
            dialogue.start(is_http=is_http(session.alpn))
            ended = await dialogue.ended
        finally:
            timer.cancel()
        waited_s = self._loop.time() - shaken_s
        refusal = after_handshake(ended, was_anything_said=dialogue.was_heard, waited_s=waited_s)
        self._facts = replace(self._facts or TlsClientFacts(), refusal=refusal)
        return ended


async def _nowhere(_connection: Server) -> Side:
    raise Ended(Outcome.FAULT, "what is blocked has no origin", reset=True)


def _never() -> None:
    return
