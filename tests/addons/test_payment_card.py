"""Payment card numbers are found as people and programs write them, and what only looks like one is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Clear, Finding, Severity
from mitmsec_addons.payment_card import PaymentCard, issuer
from mitmsec_addons.shaped import FINDINGS_LIMIT

CARDS = PaymentCard()
VISA = "4539148803436467"


def found(text: str, *, cut: int = 10**6, kind: PartKind = PartKind.BODY) -> list[Finding]:
    inspection = CARDS.open(Part(flow="f", kind=kind, sent=True, host="h"))
    data = text.encode()
    slices = [data[at : at + cut] for at in range(0, len(data), cut)]
    return [*(one for piece in slices for one in inspection.feed(piece)), *inspection.close()]


def test_a_finding_names_the_issuer_and_shows_the_last_digits_only() -> None:
    assert found("pay with 4539 1488 0343 6467, please") == [
        Finding(
            detector="payment_card",
            severity=Severity.HIGH,
            confidence=0.7,
            summary="payment card number, Visa",
            evidence="…6467 (16 digits)",
            location="request.body+9",
            offset=9,
            size_bytes=19,
            clear=Clear(value=b"4539 1488 0343 6467"),
        )
    ]


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        (VISA, 0.5),
        (f"card: {VISA}", 0.8),
        ("4539-1488-0343-6467", 0.7),
        ("VISA 4539 1488 0343 6467 exp 09/27", 1.0),
        ("amex 3782 822463 10005", 1.0),
        ('{"pan": "378282246310005"}', 0.8),
        ("5555555555554444 ; 6011111111111117", 0.5),
        ("3530111333300000", 0.5),
        ("30569309025904", 0.5),
        ("2223003122003222", 0.5),
    ],
)
def test_how_sure_it_is(text: str, confidence: float) -> None:
    assert {round(one.confidence, 2) for one in found(text)} == {confidence}


@pytest.mark.parametrize(
    "text",
    [
        "4539148803436468",  # check digit
        "9539148803436462",  # nobody's range
        "4444444444444448",  # of one digit and its check digit
        f'"order_id": {VISA}',
        f"build {VISA}",
        f"x{VISA}",
        f"{VISA}y",
        f"{VISA}.25",
        f"0.{VISA}",
        f"/{VISA}/",
        f"a={VISA}",
        "4539 1488-0343 6467",  # two ways to write in one
        "453 914 880 343 646 7",  # as on no card
        "d9b2d63d-4539-1488-0343-646712345678",
        "1453914880 3436467",
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert found(text) == []


@given(
    prefix=st.sampled_from(["4539", "5212", "2345", "6011", "3566"]),
    body=st.integers(0, 10**11 - 1),
    cut=st.integers(1, 40),
)
def test_every_number_of_those_ranges_is_found_wherever_it_is_cut(prefix: str, body: int, cut: int) -> None:
    number = f"{prefix}{body:011}"
    number += luhn.calc_check_digit(number)
    expected = len(set(number)) >= 3 and issuer(number) is not None
    assert [one.location for one in found(f"the card {number}, thanks", cut=cut)] == ["request.body+9"] * expected


def test_with_ten_the_rest_is_left_unread() -> None:
    *told, more = found("\n".join(["card 4539 1488 0343 6467"] * (FINDINGS_LIMIT + 5)))
    assert len(told) == FINDINGS_LIMIT
    assert (more.summary, more.evidence, more.location) == (
        "there may be more payment card numbers; the rest of this part was not looked through", "", "request.body"
    )  # fmt: skip


def test_in_an_address_no_place_is_told() -> None:
    (one,) = found("/pay?card 4539-1488-0343-6467", kind=PartKind.URL)
    assert one.location == "request.url"


def test_it_has_no_words() -> None:
    with pytest.raises(ValueError, match="has no words"):
        PaymentCard(("visa",))


@pytest.mark.parametrize("text", ["card_number=4539148803436467&exp=0927", "pan=4539148803436467"])
def test_in_a_form_the_name_speaks_for_it(text: str) -> None:
    assert len(found(text)) == 1


def test_the_middle_of_a_bank_account_is_no_card() -> None:
    assert found("PL61 4539 1488 0343 6467 0000 0000") == []
