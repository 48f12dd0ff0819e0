"""The inspectors by the name that stands in a policy's `inspect`."""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.core.inspection import Inspector
from mitmsec_addons.doh import Doh
from mitmsec_addons.keywords import Keywords

_MAKERS: dict[str, Callable[[tuple[str, ...]], Inspector]] = {
    Doh.name: Doh,
    Keywords.name: Keywords,
}

KNOWN: frozenset[str] = frozenset(_MAKERS)


def build(name: str, words: tuple[str, ...]) -> Inspector:
    """The inspector `name`, made with the policy's `words` for it.

    Raises ValueError for a name that is not KNOWN and for words that the inspector cannot use.
    """
    if name not in _MAKERS:
        raise ValueError(f'there is no inspector "{name}"; known: {", ".join(sorted(KNOWN))}')
    return _MAKERS[name](words)
