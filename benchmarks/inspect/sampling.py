"""Text that a regular expression matches, drawn at random: what others say that a secret looks like, as one."""

from __future__ import annotations

import random
import re
import string
from re import _constants as code  # type: ignore[attr-defined]  # nothing else takes an expression apart
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MORE = 8  # repetitions beyond the fewest, at most
TRIES = 40
_PRINTABLE = [one for one in string.printable if one not in "\r\n\t\x0b\x0c"]
_CATEGORIES = {
    code.CATEGORY_DIGIT: string.digits,
    code.CATEGORY_WORD: string.ascii_letters + string.digits + "_",
    code.CATEGORY_SPACE: " ",
}


def drawn(expression: str, rng: random.Random) -> str | None:
    """Text in which `expression` matches as a whole; None where none was met in TRIES.

    Of one with a group `value`, that is drawn.
    """
    try:
        tree, whole = parser.parse(expression), re.compile(expression)
    except (re.error, OverflowError):
        return None
    for _ in range(TRIES):
        text = _sequence(tree, rng, [])
        if (match := whole.search(text)) and len(match[0]) >= len(text) - 1:
            return match["value"] if "value" in whole.groupindex else text
    return None


def _sequence(tree: Any, rng: random.Random, groups: list[str]) -> str:
    return "".join(_one(kind, what, rng, groups) for kind, what in tree)


def _one(kind: Any, what: Any, rng: random.Random, groups: list[str]) -> str:
    match kind:
        case code.LITERAL:
            return chr(what)
        case code.NOT_LITERAL:
            return rng.choice([one for one in _PRINTABLE if ord(one) != what])
        case code.ANY:
            return rng.choice(string.ascii_letters)
        case code.IN:
            return rng.choice(_class(what))
        case code.MAX_REPEAT | code.MIN_REPEAT | code.POSSESSIVE_REPEAT:
            least, most, inner = what
            count = rng.randint(least, min(int(most), least + MORE))
            return "".join(_sequence(inner, rng, groups) for _ in range(count))
        case code.SUBPATTERN:
            return _sequence(what[-1], rng, groups)
        case code.ATOMIC_GROUP:
            return _sequence(what, rng, groups)
        case code.BRANCH:
            return _sequence(rng.choice(what[1]), rng, groups)
        case _:  # places, and what is only asked about
            return ""


def _class(members: Any) -> list[str]:
    chosen: set[str] = set()
    is_not = False
    for kind, what in members:
        match kind:
            case code.NEGATE:
                is_not = True
            case code.LITERAL:
                chosen.add(chr(what))
            case code.RANGE:
                chosen.update(map(chr, range(what[0], min(what[1], 126) + 1)))
            case code.CATEGORY:
                chosen.update(_CATEGORIES.get(what, _PRINTABLE))
    return sorted(set(_PRINTABLE) - chosen) if is_not else sorted(chosen)
