"""Words from the network as parts that can be shown: what would not be seen, or would move what is, becomes a mark.

Controls and ANSI escapes, bidi controls, zero-width characters, lone surrogates, unassigned code points: each is told
as its number. Escaping for HTML is the template's, always; this is for what HTML would show, and people misread.
"""

from __future__ import annotations

from mitmsec.core.model import Value

SHOWN_CHARACTERS = 4000


class Part(Value, frozen=True):
    """A stretch of text; a `mark` stands for what is not shown."""

    text: str
    is_mark: bool = False


def parts(value: object, limit: int = SHOWN_CHARACTERS) -> list[Part]:
    """`value` as text, in order. Beyond `limit` characters it ends with a mark that says how much is left out."""
    text = "" if value is None else str(value)
    found: list[Part] = []
    plain: list[str] = []
    for character in text[:limit]:
        if character.isprintable():
            plain.append(character)
            continue
        if plain:
            found.append(Part(text="".join(plain)))
            plain = []
        found.append(Part(text=_name(character), is_mark=True))
    if plain:
        found.append(Part(text="".join(plain)))
    if len(text) > limit:
        found.append(Part(text=f"… {len(text) - limit} more", is_mark=True))
    return found


def plain(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """The same as one text, for attributes and titles."""
    return "".join(part.text for part in parts(value, limit))


def _name(character: str) -> str:
    known = {"\n": "⏎", "\t": "⇥", "\x1b": "ESC"}
    return known.get(character) or f"U+{ord(character):04X}"
