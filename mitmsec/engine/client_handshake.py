"""Our side of TLS towards a client whose hello was read: a leaf for the decided name, and the handshake under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmsec.audit.event import FaultSeen, Outcome
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw, HandOver
from mitmsec.core.model import Refusal
from mitmsec.engine.leg import Leg
from mitmsec.engine.openssl import TlsFailed, TlsSession
from mitmsec.engine.refusals import by_alert
from mitmsec.engine.seams import Recorder, Refused
from mitmsec.engine.side import Ended

if TYPE_CHECKING:
    from OpenSSL import SSL

    from mitmsec.engine.contexts import Leaves


class Rejected(Exception):
    """The client left once it had seen the certificate; the text says how."""

    def __init__(self, refusal: Refusal | None, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal


async def leaf_context(
    leaves: Leaves,
    order: HandOver,
    recorder: Recorder,
    *,
    key: LeafKeyKind,
    not_after_s: int | None = None,
    flaw: Flaw | None = None,
) -> SSL.Context:
    """The context with a certificate that is made for this flow. Raises Ended."""
    try:
        return await leaves.context(order.flow, order.name, not_after_s=not_after_s, flaw=flaw, key=key)
    except Refused as error:
        recorder.record(FaultSeen(what="no_certificate", detail=str(error), failed="closed", flow=order.flow))
        raise Ended(Outcome.FAULT, str(error), reset=True) from None


async def shake(leg: Leg, session: TlsSession, hello: bytes) -> None:
    """The handshake on `leg`, whose first bytes were `hello`. Raises Rejected, and Ended where it is no TLS."""
    session.feed(hello)
    try:
        while not session.handshake():
            leg.write(session.outgoing())
            data = await leg.chunk()
            if not data:
                raise Rejected(Refusal.CLOSED, "ended in the TLS handshake, after it saw the certificate")
            session.feed(data)
    except TlsFailed as error:
        leg.write(session.outgoing())
        if error.alert is None:
            raise Ended(Outcome.MALFORMED, f"client's TLS handshake: {error}") from None
        raise Rejected(by_alert(error.alert), f"TLS: {error}") from None
    except OSError as error:
        raise Rejected(Refusal.RESET, str(error)) from None
    tickets = session.outgoing()
    # Which are for later connections. In TLS 1.2 our Finished comes with them, which the client waits for.
    leg.put_off(tickets) if session.version == "TLSv1.3" else leg.write(tickets)
