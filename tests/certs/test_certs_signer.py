"""Who gets which leaf: the gate's word, once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw, MintQuestion
from mitmsec_certs import signer, succession
from mitmsec_certs.authority import Authority, KeyRefused, spki_of
from mitmsec_certs.ca_folder import About, CaKind
from mitmsec_certs.ceremony import lasting
from mitmsec_certs.constraints import written
from mitmsec_certs.keystore import Keystore, open_keystore
from mitmsec_certs.leaf_keys import LeafKeyPair, LeafKeys
from mitmsec_certs.profile import DAY_S, Name
from mitmsec_certs.signer import DECISION_AGE_S, Mint, Refused, SignerDesk

NOW_S = int(time.time())


@pytest.fixture
def desk(keystore: Keystore) -> SignerDesk:
    return SignerDesk(Mint(keystore.authority), LeafKeys())


@pytest.fixture
def limited(tmp_path: Path) -> SignerDesk:
    """The desk of a CA that may speak for names below corp.example alone."""
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o700)
    limit = written(["corp.example"], [])
    root, issuing, _ = lasting(succession.prepare(folder), "host", NOW_S, limit, "correct horse battery")
    succession.complete(folder, [issuing], About(kind=CaKind.OWN), root)
    return SignerDesk(Mint(open_keystore(folder, "host", NOW_S).authority), LeafKeys())


def asked(
    flow: str = "f",
    key: LeafKeyKind = LeafKeyKind.P256,
    not_after_s: int | None = None,
    flaw: Flaw | None = None,
) -> MintQuestion:
    return MintQuestion(number=7, flow=flow, key=key, not_after_s=not_after_s, flaw=flaw)


def san_of(der: bytes) -> list[str]:
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def test_a_decided_flow_gets_a_leaf_for_exactly_the_decided_name(desk: SignerDesk) -> None:
    desk.decide("f", "www.origin.test", NOW_S)
    answer, event = desk.answer(asked(), NOW_S)
    assert (answer.number, answer.error, len(answer.chain)) == (7, "", 2)
    leaf = x509.load_der_x509_certificate(answer.chain[0])
    assert san_of(answer.chain[0]) == ["www.origin.test"]
    key = serialization.load_der_private_key(answer.key, None)
    assert spki_of(leaf.public_key()) == spki_of(key.public_key())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert event is not None
    assert (event.flow, event.names, event.flaw) == ("f", ("www.origin.test",), None)
    assert int(event.serial, 16) == leaf.serial_number
    assert event.not_after == leaf.not_valid_after_utc.isoformat().replace("+00:00", "Z")


def test_a_flow_that_the_gate_did_not_decide_gets_nothing(desk: SignerDesk) -> None:
    answer, event = desk.answer(asked("unknown"), NOW_S)
    assert answer.chain == ()
    assert "no decision" in answer.error
    assert event is None


def test_a_flow_gets_one_certificate(desk: SignerDesk) -> None:
    """Not a second one, whatever key is asked for."""
    desk.decide("f", "www.origin.test", NOW_S)
    assert desk.answer(asked(), NOW_S)[0].chain
    for question in (asked(), asked(key=LeafKeyKind.RSA2048), asked(flaw=Flaw.EXPIRED)):
        answer, event = desk.answer(question, NOW_S)
        assert (answer.chain, event) == ((), None)
        assert "already" in answer.error


def test_a_withdrawn_flow_gets_nothing(desk: SignerDesk) -> None:
    desk.decide("f", "www.origin.test", NOW_S)
    desk.withdraw("f")
    desk.withdraw("never heard of")
    assert "no decision" in desk.answer(asked(), NOW_S)[0].error
    assert len(desk) == 0


@pytest.mark.checklist("C4")
@pytest.mark.parametrize("flaw", [None, Flaw.UNTRUSTED])
def test_the_cas_own_key_gets_nothing(keystore: Keystore, flaw: Flaw | None) -> None:
    """The keys of leaves are made for them, so this can only be a fault of ours; it issues nothing all the same."""
    own = LeafKeyPair(
        public=keystore.authority._key.public_key(),
        public_key=keystore.authority.public_key,
        private_key=b"",
        made_s=NOW_S,
    )
    with pytest.raises(KeyRefused, match="own key"):
        Mint(keystore.authority).leaf(Name.of("www.origin.test"), own, asked(flaw=flaw), NOW_S)


@given(st.integers(-(2**63), 2**64 - 1) | st.none(), st.none() | st.sampled_from(Flaw))
@settings(max_examples=50, deadline=None)
def test_any_end_and_flaw_are_answered(keystore: Keystore, not_after_s: int | None, flaw: Flaw | None) -> None:
    """A worker's numbers are hostile: every one of them makes a certificate that parses."""
    desk = SignerDesk(Mint(keystore.authority), LeafKeys())
    desk.decide("f", "www.origin.test", NOW_S)
    answer, event = desk.answer(asked(not_after_s=not_after_s, flaw=flaw), NOW_S)
    assert answer.error == ""
    assert event is not None
    assert x509.load_der_x509_certificate(answer.chain[0]).not_valid_after_utc


@pytest.mark.parametrize("name", ["", "*.origin.test", "UPPER.test", "a\0b", "x" * 300])
def test_a_name_that_no_leaf_may_carry_is_refused_at_the_gates_word(desk: SignerDesk, name: str) -> None:
    """And whoever asks for it hears why, and need not wait for another word."""
    with pytest.raises(Refused, match="neither a host name"):
        desk.decide("f", name, NOW_S)
    answer, event = desk.answer(asked("f"), NOW_S)
    assert (answer.chain, event) == ((), None)
    assert "neither a host name" in answer.error


@pytest.mark.checklist("K6")
def test_a_name_outside_the_cas_limits_is_refused_whatever_the_gate_says(limited: SignerDesk) -> None:
    with pytest.raises(Refused, match=r"www\.other\.test is outside"):
        limited.decide("f", "www.other.test", NOW_S)
    answer, event = limited.answer(asked("f"), NOW_S)
    assert (answer.chain, event) == ((), None)
    assert "www.other.test is outside" in answer.error
    limited.decide("g", "www.corp.example", NOW_S)
    assert len(limited.answer(asked("g"), NOW_S)[0].chain) == 2


def test_another_ca_signs_from_then_on_and_nothing_kept_is_given_out(keystore: Keystore, limited: SignerDesk) -> None:
    mint = Mint(keystore.authority)
    desk = SignerDesk(mint, LeafKeys())
    desk.decide("f", "www.corp.example", NOW_S)
    first, _ = desk.answer(asked("f"), NOW_S)
    mint.adopt(limited._mint._authority)
    desk.decide("g", "www.corp.example", NOW_S)
    second, event = desk.answer(asked("g"), NOW_S)
    assert event is not None
    assert first.chain[1] != second.chain[1]
    with pytest.raises(Refused):
        desk.decide("h", "www.other.test", NOW_S)


@pytest.mark.parametrize("flow", ["", "f" * 129])
def test_a_flow_without_a_proper_id_is_refused(desk: SignerDesk, flow: str) -> None:
    with pytest.raises(Refused, match="id"):
        desk.decide(flow, "www.origin.test", NOW_S)


def test_a_decision_cannot_be_changed(desk: SignerDesk) -> None:
    desk.decide("f", "first.test", NOW_S)
    with pytest.raises(Refused, match="before"):
        desk.decide("f", "second.test", NOW_S)
    answer, _ = desk.answer(asked(), NOW_S)
    assert san_of(answer.chain[0]) == ["first.test"]
    with pytest.raises(Refused, match="before"):
        desk.decide("f", "third.test", NOW_S)


def test_a_decision_that_nobody_uses_is_forgotten(desk: SignerDesk) -> None:
    desk.decide("f", "www.origin.test", NOW_S)
    desk.decide("g", "www.origin.test", NOW_S + DECISION_AGE_S - 1)
    assert "no decision" in desk.answer(asked("f"), NOW_S + DECISION_AGE_S)[0].error
    assert desk.answer(asked("g"), NOW_S + DECISION_AGE_S)[0].chain
    assert len(desk) == 1


def test_a_flow_that_nobody_decided_costs_no_key(keystore: Keystore) -> None:
    """A tenth of a second for RSA is more than a worker may have for nothing."""
    desk = SignerDesk(Mint(keystore.authority), LeafKeys(make=pytest.fail))  # type: ignore[arg-type]
    assert "no decision" in desk.answer(asked(key=LeafKeyKind.RSA2048), NOW_S)[0].error


def test_a_clock_that_is_set_back_forgets_nothing(desk: SignerDesk) -> None:
    desk.decide("f", "www.origin.test", NOW_S)
    assert desk.answer(asked(), NOW_S - 3600)[0].chain


def test_the_table_of_decisions_is_bounded(desk: SignerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest give way."""
    monkeypatch.setattr(signer, "DECISIONS_LIMIT", 3)
    for number in range(5):
        desk.decide(f"f{number}", "www.origin.test", NOW_S)
    assert [f"f{number}" in desk for number in range(5)] == [False, False, True, True, True]


def test_the_same_name_and_key_get_the_same_certificate_without_a_second_event(desk: SignerDesk) -> None:
    """One event for each leaf that was issued; a kept one was recorded when it was."""
    for flow in ("f", "g"):
        desk.decide(flow, "www.origin.test", NOW_S)
    (first, event), (second, no_event) = desk.answer(asked("f"), NOW_S), desk.answer(asked("g"), NOW_S)
    assert first.chain == second.chain
    assert event is not None
    assert no_event is None


@pytest.mark.parametrize(
    "question",
    [
        asked("g", key=LeafKeyKind.RSA2048),
        asked("g", flaw=Flaw.EXPIRED),
        asked("g", flaw=Flaw.UNTRUSTED),
        asked("g", not_after_s=NOW_S + 20 * DAY_S),
    ],
)
def test_another_key_flaw_or_end_gets_another_certificate(desk: SignerDesk, question: MintQuestion) -> None:
    for flow in ("f", "g"):
        desk.decide(flow, "www.origin.test", NOW_S)
    (first, _), (second, event) = desk.answer(asked("f"), NOW_S), desk.answer(question, NOW_S)
    assert first.chain != second.chain
    assert event is not None


def test_certificates_that_are_kept_are_bounded(keystore: Keystore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for longest gives way."""
    monkeypatch.setattr(signer, "CACHE_LIMIT", 2)
    desk = SignerDesk(Mint(keystore.authority), LeafKeys())
    fresh = []
    for number, name in enumerate(["a.test", "b.test", "a.test", "c.test", "a.test", "b.test"]):
        desk.decide(str(number), name, NOW_S)
        fresh.append(desk.answer(asked(str(number)), NOW_S)[1] is not None)
    assert fresh == [True, True, False, True, False, True]


@pytest.mark.parametrize("flaw", Flaw)
def test_a_flawed_leaf_is_recorded_as_one(desk: SignerDesk, flaw: Flaw) -> None:
    desk.decide("f", "www.origin.test", NOW_S)
    answer, event = desk.answer(asked(flaw=flaw), NOW_S)
    assert event is not None
    assert event.flaw == flaw.value
    assert list(event.names) == san_of(answer.chain[0])
    assert len(answer.chain) == (1 if flaw is Flaw.UNTRUSTED else 2)


def test_an_untrusted_leaf_is_made_without_the_cas_key(keystore: Keystore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Authority, "issue", None)
    desk = SignerDesk(Mint(keystore.authority), LeafKeys())
    desk.decide("f", "www.origin.test", NOW_S)
    assert desk.answer(asked(flaw=Flaw.UNTRUSTED), NOW_S)[0].chain


def test_nothing_is_issued_once_the_ca_has_ended(desk: SignerDesk, keystore: Keystore) -> None:
    late_s = keystore.authority.validity.not_after_s + 1
    desk.decide("f", "www.origin.test", late_s)
    answer, event = desk.answer(asked(), late_s)
    assert "not valid at this time" in answer.error
    assert (answer.chain, event) == ((), None)
