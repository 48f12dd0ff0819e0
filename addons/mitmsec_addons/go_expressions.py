r"""Expressions of Go's `regexp` (RE2 syntax), told so that Hyperscan and Python's `re` mean the same by them.

    a(?i)b|c          flags in the middle hold to the end of their group ─► a(?i:b)|(?i:c)
    $   \z            the end of the text, and nothing before it        ─► \z   (`for_re`: \Z)
    [[:alnum:]]       POSIX classes                                     ─► [A-Za-z0-9]
    (?P<name>…)       names, which nobody reads                         ─► (…)

Source: https://pkg.go.dev/regexp/syntax. Of flags, `i` and `s` are taken; `m` and `U`, which no rule has, are not.
"""

from __future__ import annotations

import re

_POSIX = {
    "alnum": "A-Za-z0-9", "alpha": "A-Za-z", "digit": "0-9", "lower": "a-z", "space": r"\s", "upper": "A-Z",
    "word": r"\w", "xdigit": "A-Fa-f0-9",
}  # fmt: skip
_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\[:\w+:\]|\\.|[^\]\\])*\]|\(\?(?P<flags>[a-zA-Z]*(?:-[a-zA-Z]+)?)(?P<scope>[:)])|\(\?P<\w+>"
    r"|[()|$]|.",
    re.DOTALL,
)


def ported(expression: str) -> str:
    """Raises ValueError for a flag that is not taken, and for groups that do not match."""
    told: list[str] = []
    held: list[list[str]] = [[]]  # of each open group, the flags that hold in the rest of it
    for token in _TOKEN.finditer(expression):
        text, flags = token[0], token["flags"]
        if flags is not None and flags.strip("is-"):
            raise ValueError(f"the flag in {text} is not taken")
        if token["scope"] == ")":
            held[-1].append(flags)
            told.append(f"(?{flags}:")
        elif text.startswith("("):
            held.append([])
            told.append("(" if text.startswith("(?P<") else text)
        elif text == ")":
            if len(held) == 1:
                raise ValueError("a group ends that did not begin")
            told.append(")" * (len(held.pop()) + 1))
        elif text == "|":
            told.append(")" * len(held[-1]) + "|" + "".join(f"(?{one}:" for one in held[-1]))
        else:
            told.append(_atom(text))
    if len(held) > 1:
        raise ValueError("a group does not end")
    return "".join(told) + ")" * len(held[0])


def for_re(expression: str) -> str:
    """What was ported, as `re` writes it."""
    return re.sub(r"\\.", lambda escape: r"\Z" if escape[0] == r"\z" else escape[0], expression, flags=re.DOTALL)


def _atom(text: str) -> str:
    if text == "$":
        return r"\z"
    if text.startswith("["):
        return re.sub(r"\[:(\w+):\]", lambda name: _POSIX[name[1]], text)
    return text
