"""What a list file holds: one host name a line, `#` begins a comment. Each name is for itself and everything below it.

Most lines of long lists are names, so whole blocks of them are recognised at once; lines of other blocks are looked at
one by one. That is the difference between a fifth of a second and many for a million names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mitmsec.core.names import NAME_LIMIT_CHARS, is_address, written_name

BLOCK_CHARS = 1 << 15
_STRETCH_CHARS = (NAME_LIMIT_CHARS + 1) // 2  # of two in a row, whoever is longer than a name fills one
SHOWN_ERRORS = 20
BYTE_ORDER_MARK = "\ufeff"

# Possessive throughout: what does not match is given up at once. As mitmsec.core.names has it: labels of 1-63
# characters, of which the last is no number.
_NAME = r"(?:[a-z0-9_-]{1,63}+\.)*+(?!(?:[0-9]++|0x[0-9a-f]*+)(?:\n|\Z))[a-z0-9_-]{1,63}+"
_PLAIN = re.compile(_NAME)
_PLAIN_BLOCK = re.compile(rf"{_NAME}(?:\n{_NAME})*+")


class Names(NamedTuple):
    """What was read of a list, and its errors with their lines; of more than SHOWN_ERRORS the last says how many."""

    text: str  # comparable names, one a line
    errors: tuple[tuple[int, str], ...]


def read_names(text: str) -> Names:
    """The names in the text of a list file."""
    found: list[str] = []
    errors: list[tuple[int, str]] = []
    wrong, line = 0, 1
    for block in _blocks(_with_plain_ends(text.removeprefix(BYTE_ORDER_MARK))):
        plain = block.lower() if block.isascii() else block
        if _PLAIN_BLOCK.fullmatch(plain) and not _has_long_line(plain):
            found.append(plain)
        else:
            for number, written in enumerate(block.split("\n"), line):
                try:
                    name = _name(written)
                except ValueError as error:
                    wrong += 1
                    if wrong <= SHOWN_ERRORS:
                        errors.append((number, str(error)))
                else:
                    found += [name] if name else []
        line += block.count("\n") + 1
    if wrong > SHOWN_ERRORS:
        last = errors[-1][0]
        errors.append((last, f"{wrong - SHOWN_ERRORS} further lines after this one are wrong, {wrong} in all"))
    return Names("\n".join(found), tuple(errors))


def _with_plain_ends(text: str) -> str:
    """Every end of a line that editors know is one newline; none after the last line."""
    if "\r" in text or not text.isascii() or any(end in text for end in "\v\f\x1c\x1d\x1e"):
        text = "\n".join(text.splitlines())
    return text.rstrip("\n")


def _blocks(text: str) -> Iterator[str]:
    """Whole lines, some thousands of them at once."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + BLOCK_CHARS)
        end = len(text) if end < 0 else end
        yield text[begin:end]
        begin = end + 1


def _has_long_line(block: str) -> bool:
    """Whether one is too long for a name. Then there is a stretch of the block without a line's end in it."""
    if all("\n" in block[at : at + _STRETCH_CHARS] for at in range(0, len(block) - _STRETCH_CHARS, _STRETCH_CHARS)):
        return False
    return max(map(len, block.split("\n"))) > NAME_LIMIT_CHARS


def _name(line: str) -> str:
    """The name in a line; empty where it has none. Raises ValueError."""
    written = line.partition("#")[0].strip()
    lower = written.lower()
    if len(lower) <= NAME_LIMIT_CHARS and _PLAIN.fullmatch(lower) and written.isascii():
        return lower
    address, *names = written.split() or [""]
    if names and is_address(address):
        raise ValueError(f'"{written}" is a line of a hosts file; write its names without the address, one a line')
    return written_name(written) if written else ""
