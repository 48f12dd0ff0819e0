"""Bank account numbers are found in both spellings, and proved by country, length and check digits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban

from mitmsec.core.inspection import Part, PartKind
from mitmsec_addons.iban import Iban

IBANS = Iban()


def found(text: str, *, cut: int = 10**6) -> list[tuple[str, str, str]]:
    inspection = IBANS.open(Part(flow="f", kind=PartKind.BODY, sent=False, host="h"))
    data = text.encode()
    slices = [data[at : at + cut] for at in range(0, len(data), cut)]
    findings = [*(one for piece in slices for one in inspection.feed(piece)), *inspection.close()]
    return [(one.summary, one.evidence, one.location) for one in findings]


@pytest.mark.parametrize("written", ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00"])
def test_an_account_is_named_by_its_country_and_its_end(written: str) -> None:
    assert found(f"to {written}.") == [("bank account number (IBAN), DE", "DE…3000 (22 characters)", "response.body+3")]


@pytest.mark.parametrize(
    "number", ["GB82WEST12345698765432", "FR1420041010050500013M02606", "NL91ABNA0417164300", "NO9386011117947"]
)
def test_other_countries(number: str) -> None:
    assert [evidence for _, evidence, _ in found(f"<iban>{number}</iban>")] == [
        f"{number[:2]}…{number[-4:]} ({len(number)} characters)"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "DE88370400440532013000",  # check digits
        "DE8937040044053201300",  # length
        "ZZ89370400440532013000",  # no country
        "XDE89370400440532013000",
        "DE89370400440532013000X",
        "de89370400440532013000",  # nobody writes so; hexadecimal is written so
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert found(text) == []


@given(account=st.integers(0, 10**10 - 1), bank=st.integers(10**7, 10**8 - 1), cut=st.integers(1, 30))
def test_every_account_is_found_wherever_it_is_cut(account: int, bank: int, cut: int) -> None:
    basic = f"{bank}{account:010}"
    number = f"DE{iban.calc_check_digits(f'DE00{basic}')}{basic}"
    assert [place for *_, place in found(f"{'.' * 50}{number} {iban.format(number)}", cut=cut)] == [
        "response.body+50", "response.body+73"
    ]  # fmt: skip


def test_it_has_no_words() -> None:
    with pytest.raises(ValueError, match="has no words"):
        Iban(("DE",))
