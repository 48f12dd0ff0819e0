"""The inspectors by the name that stands in a policy's `inspect`. Each is loaded when a policy asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
}
"""In a module of this package that has the inspector's name."""

KNOWN: frozenset[str] = frozenset(_CLASSES)


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


def build(name: str, words: tuple[str, ...]) -> AnyInspector:
    """The inspector `name`, made with the policy's `words` for it. One of ours goes before one that is installed.

    Raises ValueError for a name that is not known and for words that the inspector cannot use.
    """
    if name in _CLASSES:
        module = import_module(f"mitmsec_addons.{name}")
        make: Callable[[tuple[str, ...]], AnyInspector] = getattr(module, _CLASSES[name])
        return make(words)
    from mitmsec_addons.installed import installed, made

    if name not in installed():
        raise ValueError(f'there is no inspector "{name}"; known: {", ".join(Names())}')
    return made(name, words)
