"""What an origin's proof is worth."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import pytest
from badssl_certificates import TLS_FEATURE_STAPLE, Certified, root, rsa_key
from badssl_revocation import ocsp_answer, timestamps

from mitmsec.core.messages import Flaw
from mitmsec.core.model import Action, Decision, Revocation, Transparency, UpstreamTrust
from mitmsec.core.origin_proof import Proof, Standing, Status
from mitmsec_certs.defects import Defect
from mitmsec_certs.origin_chain import BadCertificate
from mitmsec_certs.upstream import NOT_PUBLIC, Judgement, Terms, Verifier

HOST = "www.origin.test"
ROOT = root()
CA = ROOT.intermediate()
LEAF = CA.leaf(HOST)
CHAIN = (LEAF.der, CA.der, ROOT.der)


def judged(chain: tuple[bytes, ...] = CHAIN, *errors: int, own_pem: str = "", resumed: bool = False) -> Defect | None:
    return Verifier(Terms(own_pem=own_pem)).defect(Proof(errors=errors, chain=chain, resumed=resumed))


def test_a_proof_that_holds() -> None:
    assert judged() is None
    assert judged((), resumed=True) is None


def test_openssls_word_counts() -> None:
    defect = judged(CHAIN, 62)
    assert defect is not None
    assert defect.flaw is Flaw.WRONG_NAME


def test_so_does_a_rule_and_it_is_graver_than_a_date() -> None:
    weak = CA.leaf(HOST, key=rsa_key(1024))
    defect = judged((weak.der, CA.der, ROOT.der), 10)
    assert defect is not None
    assert (defect.flaw, "too weak" in defect.text) == (Flaw.UNTRUSTED, True)


@pytest.mark.checklist("U5", "U16")
@pytest.mark.parametrize("own", [ROOT, CA])
def test_a_chain_of_our_own_ca_is_refused_though_it_was_verified(own: Certified) -> None:
    defect = judged(own_pem=own.pem.decode())
    assert defect is not None
    assert "own CA" in defect.text


def test_another_certificate_for_the_same_key_is_ours_too() -> None:
    again = ROOT.intermediate("renewed", key=CA.key)
    assert judged(own_pem=again.pem.decode()) is not None


def test_other_roots_are_as_good_as_before() -> None:
    assert judged(own_pem=root("ours").pem.decode()) is None


def test_no_certificate_proves_nothing() -> None:
    defect = judged(())
    assert defect is not None
    assert "no certificate" in defect.text


def test_what_cannot_be_read_proves_nothing() -> None:
    defect = judged((LEAF.der[:-9], CA.der), 10)
    assert defect is not None
    assert (defect.flaw, "cannot be read" in defect.text) == (Flaw.UNTRUSTED, True)


def test_certificates_of_our_own_that_cannot_be_read_are_an_error() -> None:
    broken = "-----BEGIN CERTIFICATE-----\nMAcwADAAAwEA\n-----END CERTIFICATE-----\n"  # the outline of one, and empty
    with pytest.raises(BadCertificate):
        Verifier(Terms(own_pem=broken))


# --- what is asked beyond the chain -----------------------------------------------------------------------------------
class Issuers:
    """Answer `status` about every certificate, and remember what they were asked."""

    def __init__(self, standing: Standing = Standing.GOOD) -> None:
        self.status = Status(standing=standing, text="they said")
        self.asked: list[tuple[bytes, ...]] = []
        self.mode: Revocation | None = None

    async def ask(self, chain: tuple[bytes, ...], mode: Revocation) -> tuple[Status, ...]:
        self.asked.append(chain)
        self.mode = mode
        return (self.status,) * (len(chain) - 1)


def judgement(issuers: Issuers, terms: Terms = Terms(), proof: Proof | None = None) -> Judgement:  # noqa: B008
    return asyncio.run(Verifier(terms, issuers.ask).judge(proof or Proof(chain=CHAIN)))


def test_issuers_are_asked_about_the_whole_chain_once_it_holds() -> None:
    issuers = Issuers()
    assert judgement(issuers) == Judgement()
    assert issuers.asked == [CHAIN]


@pytest.mark.parametrize(
    ("proof", "terms"),
    [
        (Proof(chain=CHAIN, errors=(10,)), Terms()),
        (Proof(resumed=True), Terms()),
        (Proof(chain=(ROOT.der,)), Terms()),
        (Proof(chain=CHAIN), Terms(revocation=Revocation.OFF)),
    ],
    ids=["a chain that does not hold", "a resumed session", "a chain of one", "the policy"],
)
def test_nobody_is_asked_in_vain(proof: Proof, terms: Terms) -> None:
    issuers = Issuers(Standing.REVOKED)
    assert (judgement(issuers, terms, proof).defect is None) == (not proof.errors)
    assert issuers.asked == []


@pytest.mark.checklist("U7")
def test_what_they_say_counts() -> None:
    revoked = judgement(Issuers(Standing.REVOKED)).defect
    assert revoked is not None
    assert (revoked.flaw, revoked.text) == (Flaw.UNTRUSTED, "the certificate was revoked (they said)")
    assert "they said" in (judgement(Issuers(Standing.UNKNOWN)).note or "")
    assert judgement(Issuers(Standing.UNKNOWN), Terms(revocation=Revocation.HARD)).defect is not None


def test_a_good_staple_spares_the_question_about_the_origin_only() -> None:
    issuers = Issuers()
    assert judgement(issuers, proof=Proof(chain=CHAIN, staple=ocsp_answer(LEAF, CA))) == Judgement()
    assert issuers.asked == [CHAIN[1:]]


def test_a_staple_that_is_worthless_does_not() -> None:
    issuers = Issuers()
    late = Verifier(Terms(), issuers.ask, clock_s=lambda: time.time() + 1_000_000)
    assert asyncio.run(late.judge(Proof(chain=CHAIN, staple=ocsp_answer(LEAF, CA)))) == Judgement()
    assert issuers.asked == [CHAIN]


def test_a_staple_ends_it_before_anybody_is_asked() -> None:
    issuers, must = Issuers(), CA.leaf(HOST, more=[(TLS_FEATURE_STAPLE, False)])
    proofs = [
        Proof(chain=CHAIN, staple=ocsp_answer(LEAF, CA, revoked=True)),
        Proof(chain=(must.der, CA.der, ROOT.der)),
    ]
    assert all(judgement(issuers, proof=proof).defect for proof in proofs)
    assert issuers.asked == []


def test_notes_are_told_together() -> None:
    terms = Terms(public_roots=frozenset({hashlib.sha256(ROOT.der).hexdigest()}))
    note = judgement(Issuers(Standing.UNKNOWN), terms).note
    assert note is not None
    assert "timestamps of 0 logs" in note
    assert "they said" in note
    logged = CA.leaf(HOST, more=[timestamps(1, 2)])
    refusing = Terms(public_roots=terms.public_roots, sct=Transparency.REFUSE)
    assert judgement(Issuers(), refusing).defect is not None
    assert judgement(Issuers(), refusing, Proof(chain=(logged.der, CA.der, ROOT.der))) == Judgement()


def test_without_anybody_to_ask_nothing_is_said() -> None:
    assert asyncio.run(Verifier(Terms(revocation=Revocation.HARD)).judge(Proof(chain=CHAIN))) == Judgement()


@pytest.mark.checklist("U10")
def test_what_a_public_ca_must_say_and_does_not_is_a_defect_and_a_private_ones_is_noted() -> None:
    silent = CA.leaf(HOST, purposes=None, signs=None)
    proof = Proof(chain=(silent.der, CA.der, ROOT.der))
    noted = judgement(Issuers(), proof=proof)
    assert (noted.defect, "extendedKeyUsage" in (noted.note or "")) == (None, True)
    public = Terms(public_roots=frozenset({hashlib.sha256(ROOT.der).hexdigest()}))
    defect = judgement(Issuers(), public, proof).defect
    assert defect is not None
    assert "extendedKeyUsage" in defect.text


def test_what_a_rule_says_itself_takes_the_place_of_the_terms() -> None:
    def judged(terms: Terms, **said: Any) -> tuple[Judgement, Issuers]:
        issuers = Issuers(Standing.UNKNOWN)
        decision = Decision(action=Action.DECRYPT, rule="r", reason="", **said)
        return asyncio.run(Verifier(terms, issuers.ask).judge(Proof(chain=CHAIN), decision)), issuers

    soft, hard = Terms(revocation=Revocation.SOFT), Terms(revocation=Revocation.HARD)
    assert judged(soft)[0].defect is None
    refused, issuers = judged(soft, revocation=Revocation.HARD)
    assert (refused.defect is not None, issuers.mode) == (True, Revocation.HARD)
    noted, issuers = judged(hard, revocation=Revocation.SOFT)
    assert (noted.defect, issuers.mode) == (None, Revocation.SOFT)
    unasked, issuers = judged(hard, revocation=Revocation.OFF)
    assert (unasked.defect, issuers.asked) == (None, [])
    public = Terms(public_roots=frozenset({hashlib.sha256(CHAIN[-1]).hexdigest()}), revocation=Revocation.OFF)
    assert judged(public)[0].defect is None
    assert judged(public, sct=Transparency.REFUSE)[0].defect is not None


def test_a_rule_may_ask_for_a_root_that_the_vendor_ships_or_the_policy_names() -> None:
    def judged(said: UpstreamTrust | None, **terms: Any) -> Defect | None:
        decision = Decision(action=Action.DECRYPT, rule="r", reason="", trust=said)
        verifier = Verifier(Terms(revocation=Revocation.OFF, sct=Transparency.OFF, **terms))
        return asyncio.run(verifier.judge(Proof(chain=CHAIN), decision)).defect

    here = frozenset({hashlib.sha256(ROOT.der).hexdigest()})
    public, system = UpstreamTrust.PUBLIC, UpstreamTrust.SYSTEM
    refused = judged(public)
    assert refused is not None
    assert refused.text == NOT_PUBLIC
    assert judged(None) is judged(system, trust=public) is None
    assert judged(None, trust=public) == refused
    assert judged(public, public_roots=here) is judged(public, named_roots=here) is None
