"""The inspector `payment_card`: numbers of payment cards, by issuer's range, check digit, spelling, and words near by.

    4539 1488 0343 6467     visa, as it is written on the card ─────────► 0.7
    4539148803436467        the same in one run: half of all order numbers with such a beginning pass, too ─► 0.5
    … "card", "exp 09/27"   a word near by that speaks for it ─────────► + 0.3
    … "order_id":           or against it ─────────────────────────────► - 0.3
    id=4539148803436467     so is what is given to a name that does not speak for it

Ranges and lengths: ISO/IEC 7812, as the issuers publish them; check digit: Luhn, ISO/IEC 7812-1 Annex B.
"""

from __future__ import annotations

import re

from mitmsec.core.inspection import Part
from mitmsec.core.model import Severity
from mitmsec_addons.shaped import ShapeInspection, Telling
from mitmsec_addons.sightings import Shape, Shapes, Sighting
from mitmsec_addons.triggers import Trigger

ISSUERS = {
    "Visa": r"4(?:\d{12}|\d{15}|\d{18})",
    "Mastercard": r"(?:5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12})",
    "American Express": r"3[47]\d{13}",
    "Discover": r"6(?:011|5\d\d|4[4-9]\d)\d{12}",
    "JCB": r"35(?:2[89]|[3-8]\d)\d{12}",
    "Diners Club": r"3(?:0[0-5]|[68]\d)\d{11}",
}
ALONE, GROUPED, FOR, AGAINST = 0.5, 0.7, 0.3, -0.3
ZERO = ord("0")
DIFFERENT_DIGITS = 3  # at least: 4000 0000 0000 0002 is nobody's

_ISSUERS = {name: re.compile(expression) for name, expression in ISSUERS.items()}
_FOUND = re.compile(rb"(?<![\w.%/+-])(?:\d[ -]?){12,18}\d(?![\w%/+=]|[.-]\w)")
_AS_ON_THE_CARD = re.compile(rb"\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}")
_IN_IBAN = re.compile(rb"\b[A-Z]{2}\d\d(?: [A-Z0-9]{4})* \Z")
_FOR = re.compile(
    rb"(?i)\b(?:card|visa|master ?card|amex|american express|credit|debit|pan\b|cvv|cvc|expir|exp\b"
    rb"|kreditkarte|karte|tarjeta|carte|carta)"
)
_AGAINST = re.compile(
    rb"(?i)(?:order|tracking|invoice|build|commit|uuid|guid|sku|serial|imei|isbn|timestamp|\bid[\"']?\s*[:=])"
)
_DOUBLED = bytes(2 * (byte - ZERO) // 10 + 2 * (byte - ZERO) % 10 if 48 <= byte < 58 else 0 for byte in range(256))
_SEPARATORS = re.compile(rb"[ -]")


class PaymentCard:
    """Looks at everything. Raises ValueError for any words."""

    name = "payment_card"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if words:
            raise ValueError("payment_card has no words: it knows what it looks for")
        trigger = Trigger(r"\b[2-6]\d{3}(?:[ -]?\d{4}[ -]?\d{4}|[ -]\d{6}[ -]\d{4})")
        self._shapes = Shapes([Shape("card", trigger, _FOUND, _confidence)])

    def open(self, part: Part) -> ShapeInspection:
        return ShapeInspection(self._shapes, part, _TELLING)


def issuer(digits: str) -> str | None:
    """Whose range this number is from."""
    return next((name for name, expression in _ISSUERS.items() if expression.fullmatch(digits)), None)


def _confidence(written: bytes, context: bytes) -> float:
    bare = written.translate(None, b" -")
    if not _is_luhn(bare):  # first: it costs least, and nine in ten are none
        return 0.0
    digits = bare.decode()
    if issuer(digits) is None or len(set(digits)) < DIFFERENT_DIGITS:
        return 0.0
    is_grouped = len(digits) != len(written)
    if is_grouped and not _AS_ON_THE_CARD.fullmatch(written):
        return 0.0
    before = context.partition(written)[0]
    if _IN_IBAN.search(before):
        return 0.0
    spoken_for = FOR if _FOR.search(context) else 0.0
    spoken_against = AGAINST if _AGAINST.search(context) or (before.endswith(b"=") and not spoken_for) else 0.0
    return min((GROUPED if is_grouped else ALONE) + spoken_for + spoken_against, 1.0)


def _is_luhn(digits: bytes) -> bool:
    return (sum(digits[-1::-2]) - ZERO * len(digits[-1::-2]) + sum(digits[-2::-2].translate(_DOUBLED))) % 10 == 0


def _digits(one: Sighting) -> str:
    return _SEPARATORS.sub(b"", one.what).decode()


_TELLING = Telling(
    detector=PaymentCard.name,
    severity=Severity.HIGH,
    what="payment card numbers",
    summary=lambda one: f"payment card number, {issuer(_digits(one))}",
    evidence=lambda one: f"…{_digits(one)[-4:]} ({len(_digits(one))} digits)",
)
