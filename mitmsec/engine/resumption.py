"""TLS sessions with origins that are taken up again, so that a program's next connection needs no full handshake.

    handshake in full, certificate verified ── the origin's ticket ──► kept for this owner, name and origin
    the same program connects there again ◄── taken, once ── resumed: same certificate, same verdict, new DH secret

What is kept was verified by this process against the roots that it still has, and is good until the certificate ends
or KEEP_S after that verification, whatever was resumed in between. A ticket serves once (RFC 8446 §C.4) and only the
process that it was made for: an origin that links connections by it learns no more than from the program itself.
TLS 1.3 only, where a resumed session has a secret of its own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from OpenSSL import SSL

from mitmsec.core.messages import HandOver
from mitmsec.core.model import Endpoint, Value
from mitmsec.engine.openssl import TlsSession, size_bytes

KEEP_S = 3600.0
EACH_LIMIT = 8  # tickets for one program and origin: about as many as it opens connections at once
PLACES_LIMIT = 128
SIZE_LIMIT_BYTES = 16_384  # of one session, which holds the origin's whole chain: it sends as much of that as it likes


class Place(NamedTuple):
    """Who speaks to whom. No session is taken up in another place than where it began."""

    owner: str
    name: str
    origin: Endpoint
    sni: bool
    identity: str = ""  # whom the origin was shown the certificate of, if it asked
    demands: tuple[object, ...] = ()  # what the rule itself asks: what was verified by less proves nothing by more

    @classmethod
    def of(cls, order: HandOver, *, sni: bool) -> Place:
        said = order.decision
        demands = (said.trust, said.revocation, said.sct, said.min_tls)
        return cls(order.owner, order.name, order.origin, sni, said.identity, demands)


class _Kept(Value, frozen=True):
    session: SSL.Session
    until_s: float
    is_hybrid: bool  # the group that was agreed


class Resumptions:
    """All that one worker keeps. Bounded: what was used least recently is dropped."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Place, deque[_Kept]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def begin(self, place: Place, session: TlsSession, now_s: float) -> Resumption:
        """Before the handshake: offer the origin what was kept for `place`. Without an owner, nothing is or will be."""
        return Resumption(self, place, self._offered(place, session, now_s))

    def _offered(self, place: Place, session: TlsSession, now_s: float) -> float:
        kept = self._kept.get(place)
        while kept:
            newest = kept.pop()
            if now_s < newest.until_s:
                session.offer(newest.session)
                return newest.until_s
        self._kept.pop(place, None)
        return now_s

    def is_classical(self, place: Place, now_s: float) -> bool:
        """Whether the origin, which could have had a hybrid group, lately agreed to another one."""
        kept = self._kept.get(place)
        return kept is not None and len(kept) > 0 and now_s < kept[-1].until_s and not kept[-1].is_hybrid

    def keep(self, place: Place, session: SSL.Session, until_s: float, *, is_hybrid: bool = False) -> None:
        kept = _Kept(session=session, until_s=until_s, is_hybrid=is_hybrid)
        self._kept.setdefault(place, deque(maxlen=EACH_LIMIT)).append(kept)
        self._kept.move_to_end(place)
        while len(self._kept) > PLACES_LIMIT:
            self._kept.popitem(last=False)


class Resumption:
    """One connection's part in it."""

    __slots__ = ("_all", "_is_kept", "_place", "_until_s")

    def __init__(self, resumptions: Resumptions, place: Place, until_s: float) -> None:
        self._all, self._place, self._until_s = resumptions, place, until_s
        self._is_kept = False

    def verified(self, session: TlsSession, not_after_s: int, now_s: float) -> None:
        """After the handshake, if the origin's certificate has no defect."""
        session.expect_ticket()
        if not session.resumed:
            self._until_s = min(now_s + KEEP_S, float(not_after_s))

    def keep(self, session: TlsSession, now_s: float) -> None:
        """When the origin has answered, and at the end: keep one of its tickets, if it has sent any.

        At once, since a program that has its answer connects again before we have seen the end of this connection.
        """
        if self._is_kept or not self._place.owner or now_s >= self._until_s:
            return
        ticket = session.ticket()
        if ticket is None:
            return
        self._is_kept = True
        if size_bytes(ticket) <= SIZE_LIMIT_BYTES:
            self._all.keep(self._place, ticket, self._until_s, is_hybrid=session.strength.is_hybrid)
