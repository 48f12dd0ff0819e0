"""The inspectors by the name that stands in a policy's `inspect`. Each is loaded when a policy asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module

from mitmsec.core.inspection import AnyInspector

_CLASSES = {
    "archives": "Archives",
    "documents": "Documents",
    "doh": "Doh",
    "file_type": "FileType",
    "iban": "Iban",
    "icap": "Icap",
    "keywords": "Keywords",
    "malware": "Malware",
    "national_id": "NationalId",
    "payment_card": "PaymentCard",
    "secrets": "Secrets",
    "yara": "Yara",
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


class Names(Collection[str]):
    """All names: ours, those of packages that are installed beside us, and `others`. The packages are looked through
    only for a name that is none of the rest."""

    def __init__(self, others: Collection[str] = ()) -> None:
        self._ours = KNOWN | set(others)

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> frozenset[str]:
        from mitmsec_addons.installed import installed

        return self._ours | installed().keys()


def build(name: str, words: tuple[str, ...], prepared: bytes | None = None) -> AnyInspector:
    """The inspector `name`, made with the policy's `words` for it, and of one of PREPARED with what was prepared.

    One of ours goes before one that is installed. Raises ValueError for a name that is not known, and for what the
    inspector cannot use.
    """
    if name in _CLASSES:
        make: Callable[..., AnyInspector] = getattr(import_module(f"mitmsec_addons.{name}"), _CLASSES[name])
        return make(words) if prepared is None else make(words, prepared)
    from mitmsec_addons.installed import installed, made

    if name not in installed():
        raise ValueError(f'there is no inspector "{name}"; known: {", ".join(Names())}')
    return made(name, words)


def prepare(name: str) -> bytes:
    """What `build` can be given for one of PREPARED: a second of computing."""
    make: Callable[[], bytes] = import_module(f"mitmsec_addons.{name}").prepared
    return make()
