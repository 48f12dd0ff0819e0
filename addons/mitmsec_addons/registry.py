"""The inspectors by the name that stands in a policy's `inspect`. Each is loaded when a policy asks for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from mitmsec.core.inspection import AnyInspector

_CLASSES = {
    "doh": "Doh",
    "iban": "Iban",
    "keywords": "Keywords",
    "national_id": "NationalId",
    "payment_card": "PaymentCard",
}
"""In a module of this package that has the inspector's name."""

KNOWN: frozenset[str] = frozenset(_CLASSES)


def build(name: str, words: tuple[str, ...]) -> AnyInspector:
    """The inspector `name`, made with the policy's `words` for it.

    Raises ValueError for a name that is not KNOWN and for words that the inspector cannot use.
    """
    if name not in _CLASSES:
        raise ValueError(f'there is no inspector "{name}"; known: {", ".join(sorted(KNOWN))}')
    make: Callable[[tuple[str, ...]], AnyInspector] = getattr(import_module(f"mitmsec_addons.{name}"), _CLASSES[name])
    return make(words)
