"""A client's hello, read from its leg: the gate has only looked at it."""

from __future__ import annotations

from mitmsec.audit.event import Outcome
from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello, Malformed, NeedMore
from mitmsec.engine.leg import Leg
from mitmsec.engine.side import Ended


async def read_hello(leg: Leg) -> tuple[ClientHello, bytes]:
    """It, and all bytes that have come by then. Raises Ended."""
    data = b""
    while True:
        try:
            more = await leg.chunk()
        except OSError as error:
            raise Ended(Outcome.CLIENT_CLOSED, str(error), reset=True) from None
        if not more:
            raise Ended(Outcome.CLIENT_CLOSED, "ended before its hello was complete")
        data += more
        match clienthello.parse(data):
            case ClientHello() as hello:
                return hello, data
            case Malformed(reason=reason):
                raise Ended(Outcome.MALFORMED, f"client's hello: {reason}", reset=True)
            case NeedMore():
                if len(data) > clienthello.HELLO_LIMIT_BYTES:
                    raise Ended(Outcome.MALFORMED, "client's hello: too long", reset=True)
