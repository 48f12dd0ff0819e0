"""The inspectors by the name that stands in a policy's `inspect`. Each is loaded when a policy asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from mitmsec.core.inspection import Inspector

_CLASSES = {
    "doh": "Doh",
    "iban": "Iban",
    "keywords": "Keywords",
    "national_id": "NationalId",
    "payment_card": "PaymentCard",
    "secrets": "Secrets",
}
"""In a module of this package that has the inspector's name."""

KNOWN: frozenset[str] = frozenset(_CLASSES)


PREPARED: Mapping[str, tuple[str, ...]] = {
    "secrets": (
        "secrets.py",
        "secret_rules.py",
        "go_expressions.py",
        "triggers.py",
        "word_index.py",
        "rules/gitleaks.toml",
    ),
}
"""Those that take long to compile what they look for, and can be handed it (`prepare`), and the files behind it."""


def build(name: str, words: tuple[str, ...], prepared: bytes | None = None) -> Inspector:
    """The inspector `name`, made with the policy's `words` for it, and of one of PREPARED with what was prepared.

    Raises ValueError for a name that is not KNOWN, and for what the inspector cannot use.
    """
    if name not in _CLASSES:
        raise ValueError(f'there is no inspector "{name}"; known: {", ".join(sorted(KNOWN))}')
    make: Callable[..., Inspector] = getattr(import_module(f"mitmsec_addons.{name}"), _CLASSES[name])
    return make(words) if prepared is None else make(words, prepared)


def prepare(name: str) -> bytes:
    """What `build` can be given for one of PREPARED: a second of computing."""
    make: Callable[[], bytes] = import_module(f"mitmsec_addons.{name}").prepared
    return make()
