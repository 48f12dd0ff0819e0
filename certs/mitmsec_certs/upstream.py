"""What an origin's proof is worth.

    OpenSSL's errors ──┐
    chain, verified ───┴─► forbidden? ─► OpenSSL's word ─► weak? ─► the gravest defect
                                                              └─ none ─► stapled? logged? revoked? ─► defect, note

Only a chain that holds is asked about further: questions about revocation leave the machine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import lru_cache

from mitmsec.core.model import Decision, Revocation, Transparency, UpstreamTrust, Value
from mitmsec.core.origin_proof import Proof, Standing, Status
from mitmsec_certs import revocation, revocation_rules, transparency_rules
from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.chain_rules import Link, forbidden, omissions, weaknesses
from mitmsec_certs.defects import Defect, gravest, of_codes, untrusted
from mitmsec_certs.origin_chain import BadCertificate, certificate_of, key_sha256, link_of

NOT_PUBLIC = "the root is none of those that the system's vendor ships"
CHAINS_LIMIT = 256  # that need not be read again

type Ask = Callable[[tuple[bytes, ...], Revocation], Awaitable[tuple[Status, ...]]]
"""What the issuers say about each certificate of a chain (DER) but the last. Never raises."""


class Judgement(Value, frozen=True):
    """`note`: what is to be recorded of a proof that holds."""

    defect: Defect | None = None
    note: str | None = None


class Terms(Value, frozen=True):
    """What is asked of origins. `own_pem`: certificates of CAs that nobody signs with but we."""

    own_pem: str = ""
    public_roots: frozenset[str] = frozenset()  # SHA-256, hex
    named_roots: frozenset[str] = frozenset()  # likewise: others that the policy names
    trust: UpstreamTrust = UpstreamTrust.SYSTEM
    revocation: Revocation = Revocation.SOFT
    sct: Transparency = Transparency.REPORT


async def _nobody(chain: tuple[bytes, ...], mode: Revocation) -> tuple[Status, ...]:
    return (Status(standing=Standing.UNASKED),) * (len(chain) - 1)


class Verifier:
    """Judges what origins show, by terms that do not change while it lives, or by what a rule says itself."""

    def __init__(self, terms: Terms, ask: Ask = _nobody, *, clock_s: Callable[[], float] = time.time) -> None:
        """Raises BadCertificate."""
        self._terms, self._ask, self._clock_s = terms, ask, clock_s
        ours = certificates_in(terms.own_pem.encode())
        self._own_keys = frozenset(key_sha256(certificate_of(der)) for der in ours)

    async def judge(self, proof: Proof, said: Decision | None = None) -> Judgement:
        """What is wrong with it, if anything is: by what the rule that decided has `said`, and else by the terms."""
        defect = self.defect(proof)
        if defect is not None or proof.resumed:
            return Judgement(defect=defect)
        chain = _links(proof.chain)
        is_public = self._is_public(chain)
        if ((said and said.trust) or self._terms.trust) is UpstreamTrust.PUBLIC and not self._is_public_or_named(chain):
            return Judgement(defect=untrusted(NOT_PUBLIC))
        unlogged, note = transparency_rules.by_logs(
            chain[0], (said and said.sct) or self._terms.sct, is_public=is_public
        )
        if unlogged is not None:
            return Judgement(defect=unlogged)
        revoked, unsure = await self._revoked(proof, chain[0], (said and said.revocation) or self._terms.revocation)
        left_out = () if is_public else (one.text for one in omissions(chain))
        return Judgement(defect=revoked, note="; ".join(filter(None, (note, *left_out, unsure))) or None)

    def defect(self, proof: Proof) -> Defect | None:
        """The gravest of what the chain itself shows; None for one that holds."""
        found = of_codes(proof.errors)
        if not proof.chain and not proof.resumed:
            return gravest((*found, untrusted("the origin showed no certificate")))
        try:
            chain = _links(proof.chain)
        except BadCertificate:
            return gravest((*found, untrusted("a certificate of the chain cannot be read")))
        left_out = omissions(chain) if self._is_public(chain) else ()
        return gravest((*forbidden(chain, self._own_keys), *found, *weaknesses(chain), *left_out))

    def _is_public(self, chain: tuple[Link, ...]) -> bool:
        return bool(chain) and chain[-1].sha256 in self._terms.public_roots

    def _is_public_or_named(self, chain: tuple[Link, ...]) -> bool:
        return self._is_public(chain) or chain[-1].sha256 in self._terms.named_roots

    async def _revoked(self, proof: Proof, leaf: Link, mode: Revocation) -> tuple[Defect | None, str | None]:
        if mode is Revocation.OFF or len(proof.chain) == 1:
            return None, None
        staple = self._stapled(proof)
        if (defect := revocation_rules.by_staple(staple, must_staple=leaf.must_staple)) is not None:
            return defect, None
        if staple is not None and staple.standing is Standing.GOOD:
            answers = (staple, *await self._ask(proof.chain[1:], mode))
        else:
            answers = await self._ask(proof.chain, mode)
        return revocation_rules.by_answers(answers, mode)

    def _stapled(self, proof: Proof) -> Status | None:
        if not proof.staple:
            return None
        return revocation.by_ocsp(proof.staple, proof.chain[0], proof.chain[1], int(self._clock_s()))


@lru_cache(CHAINS_LIMIT)
def _links(chain: tuple[bytes, ...]) -> tuple[Link, ...]:
    return tuple(map(link_of, chain))
