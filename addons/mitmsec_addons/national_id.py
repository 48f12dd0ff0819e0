"""The inspector `national_id`: numbers that states give to persons, by form, check digits and the words around them.

    RSSMRA85T10A562S                 a form that hardly anything else has, and a check letter ─► 0.8 alone
    12345678Z                        common forms: one in 23 passes by chance ────────────────► 0.4 alone, 0.9 with
    … "DNI", "documento"             a word of that country near by                              such a word
    pesel: 44051401359               bare digits: only behind their name ─────────────────────► 0.9

What is below 0.5 is not told. Forms and check digits are python-stdnum's, each from its issuer's publication.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

from mitmsec.core.inspection import Part
from mitmsec.core.model import Severity, Value
from mitmsec_addons.shaped import SURE_ENOUGH, ShapeInspection, Telling
from mitmsec_addons.sightings import Check, Shape, Shapes, Sighting
from mitmsec_addons.triggers import Trigger


class Kind(Value, frozen=True):
    """One kind of number. `module` is python-stdnum's; of `found`, a group is the number."""

    name: str
    module: str
    trigger: str
    found: str
    words: str
    alone: float
    with_words: float
    caseless: bool = False  # the trigger


def _named(name: str, module: str, words: str, number: str) -> Kind:
    """Bare digits, which are told only behind a word."""
    found = rf"(?i)\b(?:{words})\D{{0,24}}?({number})(?!\d)"
    return Kind(name, module, rf"\b(?:{words})", found, words, 0.9, 0.9, caseless=True)


KINDS = (
    Kind("US social security number", "us.ssn", r"\b\d{3}-\d{2}-\d{4}",
         r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])",
         r"ssn|social security|soc sec|taxpayer", 0.4, 0.8),
    Kind("Spanish DNI", "es.dni", r"\b\d{8}-?[A-Z]", r"(?<![\w-])\d{8}-?[A-HJ-NP-TV-Z](?![\w-])",
         r"\bdni\b|\bnif\b|documento|identidad", 0.4, 0.9),
    Kind("Spanish NIE", "es.nie", r"\b[XYZ]-?\d{7}-?[A-Z]", r"(?<![\w-])[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z](?![\w-])",
         r"\bnie\b|\bnif\b|extranjero|identidad", 0.6, 0.9),
    Kind("Italian codice fiscale", "it.codicefiscale", r"\b[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]",
         r"(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)", r"codice fiscale|\bcf\b|fiscal", 0.8, 1.0),
    Kind("French NIR", "fr.nir", r"\b[12] ?\d{2} ?[01]\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}",
         r"(?<![\w-])[12] ?\d{2} ?[01]\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?![\w-])",
         r"s.{1,2}cu|insee|\bnir\b|num.{1,2}ro", 0.4, 0.8),
    Kind("Brazilian CPF", "br.cpf", r"\b\d{3}\.\d{3}\.\d{3}-\d{2}", r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)",
         r"cpf", 0.7, 0.9),
    Kind("Swedish personnummer", "se.personnummer", r"\b(?:\d{2})?\d{6}[-+]\d{4}",
         r"(?<![\w-])(?:\d{2})?\d{6}[-+]\d{4}(?![\w-])", r"personn|pnr|person.?id", 0.4, 0.8),
    Kind("Finnish henkilötunnus", "fi.hetu", r"\b\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]",
         r"(?<![\w-])\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?![\w-])", r"hetu|henkil|personbeteckning", 0.5, 0.9),
    _named("Dutch BSN", "nl.bsn", r"bsn|burgerservicenummer|sofi", r"\d{9}"),
    _named("NHS number", "gb.nhs", r"nhs", r"[4679]\d{2}[ -]?\d{3}[ -]?\d{4}"),
    _named("Polish PESEL", "pl.pesel", r"pesel", r"\d{11}"),
    _named("German tax number", "de.idnr", r"steuer|idnr|tin\b", r"\d{2} ?\d{3} ?\d{3} ?\d{3}"),
    _named("Canadian SIN", "ca.sin", r"\bsin\b|social insurance", r"\d{3}[ -]?\d{3}[ -]?\d{3}"),
    _named("Indian Aadhaar", "in_.aadhaar", r"aadhaar|aadhar|uidai", r"\d{4} ?\d{4} ?\d{4}"),
)  # fmt: skip


class NationalId:
    """Looks at everything. Raises ValueError for any words."""

    name = "national_id"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if words:
            raise ValueError("national_id has no words: it knows what it looks for")
        self._shapes = Shapes([_shape(kind) for kind in KINDS])

    def open(self, part: Part) -> ShapeInspection:
        return ShapeInspection(self._shapes, part, _TELLING)


def _shape(kind: Kind) -> Shape:
    trigger = Trigger(kind.trigger, caseless=kind.caseless)
    words = re.compile(f"(?i)(?:{kind.words})".encode())
    return Shape(
        name=kind.name,
        trigger=trigger,
        found=re.compile(kind.found.encode()),
        check=_check(kind, words),
        needs=words if kind.alone < SURE_ENOUGH else None,
    )


def _check(kind: Kind, words: re.Pattern[bytes]) -> Check:
    is_valid: Callable[[str], bool] = import_module(f"stdnum.{kind.module}").is_valid

    def check(written: bytes, context: bytes) -> float:
        if not is_valid(written.decode()):
            return 0.0
        return kind.with_words if words.search(context) else kind.alone

    return check


def _tail(one: Sighting) -> str:
    """So many of its last characters that it is known again, and not told."""
    return one.what[-3:].decode()


_TELLING = Telling(
    detector=NationalId.name,
    severity=Severity.HIGH,
    what="national identity numbers",
    summary=lambda one: one.shape,
    evidence=lambda one: f"…{_tail(one)} ({len(one.what)} characters)",
)
