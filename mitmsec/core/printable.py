"""Words of others, made harmless to show."""

from __future__ import annotations


def shown(value: object) -> str:
    """`value` with everything that is not printable escaped: it can neither move the cursor nor reverse a line."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
