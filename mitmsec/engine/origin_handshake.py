"""TLS towards an origin, to its end: who asks for a client's certificate has to prove itself first.

    hello ──► … ◄── request, certificate, proof ── does it hold? ── yes ──► ours, and the rest
                                                      └─ no ──► nothing more is said to it

A certificate says who somebody is, and an origin that asks for one where there is none is remembered, to be let pass:
an impostor gets neither. What it is asked for comes last in a handshake, so by then all of the origin's own is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mitmsec.audit.event import Outcome
from mitmsec.engine.leg import Leg
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.side import Ended

type Judge = Callable[[TlsSession], Awaitable[bool]]
"""Is asked once a handshake: whether to go on."""


async def shake(leg: Leg, session: TlsSession, judge: Judge) -> bool:
    """Shake hands; whether it went to its end. Raises Ended, TlsFailed, OSError, and what `judge` raises.

    The last that we say may be put off (see Leg): whoever has the leg next writes, or lets it catch up.
    """
    is_judged = False
    while True:
        is_complete = session.handshake()
        answer = session.outgoing()
        if answer and session.is_asked and not is_judged:
            if not await judge(session):
                return False
            is_judged = True
        if not is_complete:
            leg.write(answer)
        else:
            # What is said last in TLS 1.3 the origin needs only for what is said after it: both go at once.
            leg.put_off(answer) if session.version == "TLSv1.3" and not session.is_asked else leg.write(answer)
            return is_judged or await judge(session)
        data = await leg.chunk()
        if not data:
            raise Ended(Outcome.ORIGIN_RESET, "the origin ended in its TLS handshake")
        session.feed(data)
