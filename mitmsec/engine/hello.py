"""A client's hello, read from its leg: the gate has only looked at it."""

from __future__ import annotations

from mitmsec.audit.event import Outcome
from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello, Malformed, NeedMore
from mitmsec.core.model import TlsVersion
from mitmsec.engine import alerts
from mitmsec.engine.leg import Leg
from mitmsec.engine.side import Ended
from mitmsec.engine.strength import reaches


async def read_hello(leg: Leg) -> tuple[ClientHello, bytes]:
    """It, and all bytes that have come by then. Raises Ended."""
    data = b""
    while True:
        try:
            more = await leg.chunk(is_there=True)
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


def demand(leg: Leg, hello: ClientHello, least: TlsVersion) -> None:
    """Go on only with a client that has this version; another one is told so. Raises Ended."""
    if not reaches(hello, least):
        leg.write(alerts.record(alerts.PROTOCOL_VERSION))
        raise Ended(Outcome.BLOCKED, f"it has no TLS {least}, the rule's min_tls")
