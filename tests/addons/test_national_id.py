"""Numbers of persons: told alone where their form proves enough, else only with a word of their country near by."""

from __future__ import annotations

import pytest

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding
from mitmsec_addons.national_id import KINDS, Kind, NationalId
from mitmsec_addons.shaped import SURE_ENOUGH

IDS = NationalId()
EXAMPLES = {  # of each kind a valid number, and words as they stand before it
    "US social security number": ("536-90-4399", "SSN: "),
    "Spanish DNI": ("54362315K", "DNI "),
    "Spanish NIE": ("X2482300W", "NIE "),
    "Italian codice fiscale": ("RCCMNL83S18D969H", "codice fiscale "),
    "French NIR": ("295109912611193", "numéro INSEE "),
    "Brazilian CPF": ("390.533.447-05", "CPF "),
    "Swedish personnummer": ("880320-0016", "personnummer "),
    "Finnish henkilötunnus": ("131052-308T", "hetu "),
    "Dutch BSN": ("111222333", "BSN: "),
    "NHS number": ("943 476 5870", "NHS no. "),
    "Polish PESEL": ("44051401359", "PESEL "),
    "German tax number": ("36 574 261 809", "Steuer-ID "),
    "Canadian SIN": ("123-456-782", "SIN: "),
    "Indian Aadhaar": ("2341 2341 2346", "Aadhaar "),
}


def found(text: str, *, cut: int = 10**6) -> list[Finding]:
    inspection = IDS.open(Part(flow="f", kind=PartKind.BODY, sent=True, host="h"))
    data = text.encode()
    slices = [data[at : at + cut] for at in range(0, len(data), cut)]
    return [*(one for piece in slices for one in inspection.feed(piece)), *inspection.close()]


def test_each_kind_has_an_example() -> None:
    assert EXAMPLES.keys() == {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.module)
def test_a_number_is_found_behind_its_word_wherever_it_is_cut(kind: Kind) -> None:
    number, words = EXAMPLES[kind.name]
    text = f"... {words}{number} ..."
    (whole,) = found(text)
    assert (whole.summary, whole.detector) == (kind.name, "national_id")
    assert whole.evidence == f"…{number[-3:]} ({len(number)} characters)"
    assert whole.location == f"request.body+{len(text[: text.index(number)].encode())}"
    for cut in (1, 2, 3, 5, 7, 11):
        assert found(text, cut=cut) == [whole]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.module)
def test_alone_it_is_told_only_where_its_form_is_enough(kind: Kind) -> None:
    number, _ = EXAMPLES[kind.name]
    is_enough = kind.alone >= SURE_ENOUGH and not kind.caseless
    assert [one.summary for one in found(f"... {number} ...")] == [kind.name] * is_enough


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.module)
def test_with_another_digit_it_is_none(kind: Kind) -> None:
    """Of US numbers, which have no check digit, one that is never given out."""
    name = kind.name
    number, words = EXAMPLES[name]
    at = max(index for index, character in enumerate(number) if character.isdigit())
    flawed = f"{number[:at]}{(int(number[at]) + 1) % 10}{number[at + 1 :]}" if name[:2] != "US" else "000-12-3456"
    assert found(f"{words}{flawed}") == []


@pytest.mark.parametrize(
    "text",
    [
        "order 536-90-43991",
        "tracking 1-536-90-4399-1, ssn",
        "tin roof 12345678901",
        "nhs is a service; call 0123456789",
        "d9b2d63d-12345678Z-x dni",
        "pesel and much more text before any number: 44051401359",
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert found(text) == []


def test_it_has_no_words() -> None:
    with pytest.raises(ValueError, match="has no words"):
        NationalId(("DE",))
