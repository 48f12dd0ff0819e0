"""What a list file holds: one host name a line, `#` begins a comment. Each name is for itself and everything below it.

Most lines of long lists are names, so whole blocks of them are recognised at once, by what is not in them; lines of
other blocks are looked at one by one. That is the difference between a tenth of a second and many for a million names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mitmsec.core.names import LABEL_LIMIT_CHARS, NAME_LIMIT_CHARS, is_address, written_name

BLOCK_CHARS = 1 << 15
SHOWN_ERRORS = 20
BYTE_ORDER_MARK = "\ufeff"

# Possessive throughout: what does not match is given up at once. As mitmsec.core.names has it: labels of 1-63
# characters, of which the last is no number.
_PLAIN = re.compile(r"(?:[a-z0-9_-]{1,63}+\.)*+(?!(?:[0-9]++|0x[0-9a-f]*+)\Z)[a-z0-9_-]{1,63}+")
_IN_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789_-.\n"
_NO_LABEL = (b"..", b"\n.", b".\n", b"\n\n")
_SAME_DIGIT = bytes.maketrans(b"123456789", b"000000000")


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
        if block.isascii() and _is_plain(block.lower()):
            found.append(block.lower())
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


def _is_plain(block: str) -> bool:
    """Whether every line is a name as it is compared."""
    text = f"\n{block}\n".encode("ascii")
    if text.translate(None, _IN_NAMES) or any(gap in text for gap in _NO_LABEL):
        return False
    lines = block.split("\n")
    if max(map(len, lines)) <= LABEL_LIMIT_CHARS and b"0x" not in text and b"0\n" not in text.translate(_SAME_DIGIT):
        return True
    return all(_is_name(line) for line in lines if len(line) > LABEL_LIMIT_CHARS or "0x" in line or line[-1].isdigit())


def _is_name(lower: str) -> bool:
    return len(lower) <= NAME_LIMIT_CHARS and _PLAIN.fullmatch(lower) is not None


def _name(line: str) -> str:
    """The name in a line; empty where it has none. Raises ValueError."""
    written = line.partition("#")[0].strip()
    lower = written.lower()
    if written.isascii() and _is_name(lower):
        return lower
    address, *names = written.split() or [""]
    if names and is_address(address):
        raise ValueError(f'"{written}" is a line of a hosts file; write its names without the address, one a line')
    return written_name(written) if written else ""
