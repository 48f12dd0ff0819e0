"""Who may have which leaf: the gate's word, used once.

    gate ── decide(flow, name) ──► [ decided ] ── answer(question) ──► [ spent ] ── withdraw / age ──► forgotten
                                        │                                  │
    worker ── question(flow, key) ──────┴── leaf for exactly `name`        └── refused: once a flow

There is one desk for each session, so a worker of one run can never use a decision of another run's gate. A question
that fails spends nothing; only an issued leaf does. All workers of a session get the same leaf for the same question,
with the key that is the session's for that day. Memory is bounded: at most
`DECISIONS_LIMIT` flows a desk, each for at most `DECISION_AGE_S`, oldest out. Time is an argument (Unix seconds).
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from mitmsec.audit.event import CertificateSeen
from mitmsec.core.messages import Flaw, MintAnswer, MintQuestion
from mitmsec.core.model import Value
from mitmsec_certs.authority import Authority, serial_of, untrusted_chain
from mitmsec_certs.leaf_keys import LeafKeyPair, LeafKeys
from mitmsec_certs.profile import LeafProfile, Name, leaf_profile

DECISIONS_LIMIT = 65_536
DECISION_AGE_S = 600  # dialling and the origin's handshake lie between a decision and its question
CACHE_LIMIT = 4096
FLOW_LIMIT_CHARACTERS = 128
SPENT = "this flow has its certificate already"


type LeafKind = tuple[bytes, Name, int, Flaw | None]  # public key, name, end, flaw


class Refused(Exception):
    """Why there is no leaf."""


class Minted(Value, frozen=True):
    """A chain, leaf first; `fresh` when it was signed for this question and not kept from an earlier one."""

    chain: tuple[bytes, ...]
    profile: LeafProfile
    serial: int
    fresh: bool


class Mint:
    """The authority with a memory: the same name, key, end and flaw get the same certificate again.

    A kept leaf was recorded when it was issued, so it makes no second `certificate` event.
    """

    def __init__(self, authority: Authority, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._authority = authority
        self._random = random
        self._kept: OrderedDict[LeafKind, Minted] = OrderedDict()

    def adopt(self, authority: Authority) -> None:
        """From now on leaves are another CA's; what is kept of the one before is nobody's any more."""
        self._authority = authority
        self._kept.clear()

    def require_allowed(self, name: Name) -> None:
        """Raises NameRefused for a name that the CA may not speak for."""
        self._authority.require_allowed(name)

    def leaf(self, name: Name, pair: LeafKeyPair, question: MintQuestion, now_s: int) -> Minted:
        """The leaf for `name` and the key of `pair`, as `question` wants it.

        Raises KeyRefused for the CA's own key, NameRefused, ValueError when the CA is not valid at `now_s`.
        """
        validity = self._authority.validity
        profile = leaf_profile(name, now_s, validity, origin_not_after_s=question.not_after_s, flaw=question.flaw)
        key = (pair.public_key, name, profile.validity.not_after_s, profile.flaw)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        minted = self._issued(profile, pair)
        self._kept[key] = msgspec.structs.replace(minted, fresh=False)
        if len(self._kept) > CACHE_LIMIT:
            self._kept.popitem(last=False)
        return minted

    def _issued(self, profile: LeafProfile, pair: LeafKeyPair) -> Minted:
        self._authority.require_foreign(pair.public_key)
        serial = serial_of(self._random(16))
        sign = self._authority.issue if profile.by_ca else untrusted_chain
        return Minted(chain=sign(profile, pair.public, serial), profile=profile, serial=serial, fresh=True)


class Decided(Value, frozen=True):
    """What is known of a flow: the name that its leaf may carry, or None and why there is none."""

    name: Name | None
    why: str
    at_s: int


class SignerDesk:
    """The decisions of one session and what became of them."""

    def __init__(self, mint: Mint, keys: LeafKeys) -> None:
        self._mint = mint
        self._keys = keys
        self._decided: OrderedDict[str, Decided] = OrderedDict()  # by flow

    def __len__(self) -> int:
        return len(self._decided)

    def __contains__(self, flow: str) -> bool:
        return flow in self._decided

    def decide(self, flow: str, name: str, now_s: int) -> None:
        """The gate's word. Raises Refused for a name that no leaf may carry, and for a flow that was decided before.

        A name outside the CA's constraints is remembered as refused: whoever asks is told that at once.
        """
        if not 0 < len(flow) <= FLOW_LIMIT_CHARACTERS:
            raise Refused("the flow's id is empty or too long")
        self._forget_old(now_s)
        if flow in self._decided:
            raise Refused("this flow was decided before")
        why = ""
        try:
            decided = Name.of(name)
            self._mint.require_allowed(decided)
        except ValueError as error:
            why = str(error)
        self._decided[flow] = Decided(name=None if why else decided, why=why, at_s=now_s)
        if len(self._decided) > DECISIONS_LIMIT:
            self._decided.popitem(last=False)
        if why:
            raise Refused(why)

    def withdraw(self, flow: str) -> None:
        """The flow has ended. Unknown flows are no error: they may have been forgotten already."""
        self._decided.pop(flow, None)

    def answer(self, question: MintQuestion, now_s: int) -> tuple[MintAnswer, CertificateSeen | None]:
        """The leaf for the decided name, or why not; and the event when it was issued for this question."""
        self._forget_old(now_s)
        try:
            name = self._decided_name(question.flow)
            pair = self._keys.of(question.key, now_s)
            minted = self._mint.leaf(name, pair, question, now_s)
        except (Refused, ValueError) as error:
            return MintAnswer(number=question.number, error=str(error)), None
        self._decided[question.flow] = Decided(name=None, why=SPENT, at_s=self._decided[question.flow].at_s)
        event = _event(question.flow, minted) if minted.fresh else None
        return MintAnswer(number=question.number, chain=minted.chain, key=pair.private_key), event

    def _decided_name(self, flow: str) -> Name:
        if flow not in self._decided:
            raise Refused("no decision to decrypt this flow")
        decided = self._decided[flow]
        if decided.name is None:
            raise Refused(decided.why)
        return decided.name

    def _forget_old(self, now_s: int) -> None:
        while self._decided:
            flow, decided = next(iter(self._decided.items()))
            if now_s < decided.at_s + DECISION_AGE_S:  # a clock that was set back only makes them live longer
                return
            del self._decided[flow]


def _event(flow: str, minted: Minted) -> CertificateSeen:
    profile = minted.profile
    return CertificateSeen(
        flow=flow,
        serial=f"{minted.serial:032x}",
        names=(profile.name.text,),
        not_after=datetime.fromtimestamp(profile.validity.not_after_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        flaw=profile.flaw.value if profile.flaw is not None else None,
    )
