"""The inspector `iban`: international bank account numbers (ISO 13616), by country, length and check digits."""

from __future__ import annotations

import re

from stdnum import iban

from mitmsec.core.inspection import Part
from mitmsec.core.model import Severity
from mitmsec_addons.shaped import ShapeInspection, Telling
from mitmsec_addons.sightings import Shape, Shapes, Sighting
from mitmsec_addons.triggers import Trigger

SURE = 0.9

_DIGITS = [b"%d" % int(chr(byte), 36) if chr(byte).isascii() and chr(byte).isalnum() else b"" for byte in range(256)]
_FOUND = re.compile(rb"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")


class Iban:
    """Looks at everything. Raises ValueError for any words."""

    name = "iban"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if words:
            raise ValueError("iban has no words: it knows what it looks for")
        trigger = Trigger(r"\b[A-Z]{2}\d{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}")
        self._shapes = Shapes([Shape("iban", trigger, _FOUND, _confidence)])

    def open(self, part: Part) -> ShapeInspection:
        return ShapeInspection(self._shapes, part, _TELLING)


def _confidence(written: bytes, context: bytes) -> float:
    """Two check digits, a country and its length leave one of some ten thousand by chance."""
    bare = written.replace(b" ", b"")
    digits = b"".join(map(_DIGITS.__getitem__, bare[4:] + bare[:4]))
    if int(digits) % 97 != 1:  # ISO 7064; first, as it costs least
        return 0.0
    return SURE if iban.is_valid(written.decode(), check_country=False) else 0.0


def _number(one: Sighting) -> str:
    return one.what.replace(b" ", b"").decode()


_TELLING = Telling(
    detector=Iban.name,
    severity=Severity.MEDIUM,
    what="bank account numbers",
    summary=lambda one: f"bank account number (IBAN), {_number(one)[:2]}",
    evidence=lambda one: f"{_number(one)[:2]}…{_number(one)[-4:]} ({len(_number(one))} characters)",
)
