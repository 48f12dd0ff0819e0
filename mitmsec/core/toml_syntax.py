"""What Python's TOML reader complains of, in the words of somebody who writes a policy.

The reader speaks of its own insides ("Cannot mutate immutable namespace ('rule',)"). What is not known here is passed
on as it is: a later Python may word things differently, and a foreign sentence is better than none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_AT = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$")
_PATH = r"\((?P<path>'[^()]*),?\)"
_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (f"Cannot declare {_PATH} twice", "{path} stands here a second time; for several write [[{path}]] each time"),
        (
            f"Cannot (?:mutate immutable|redefine) namespace {_PATH}",
            "{path} was complete where it was first written; nothing can be added to it here",
        ),
        ("Cannot overwrite a value", "this name has a value already, or was written as another kind of table"),
        ("Duplicate inline table key '(?P<path>.*)'", "{path} stands twice within these braces"),
        ("Invalid value", 'a value is missing here, or it is a text without its quotes: write "…"'),
        ("Invalid statement", "neither a key, nor a [table], nor a comment"),
        ("Expected '=' after a key.*", "a key needs = and a value"),
        ("Expected '\\]\\]' at the end of an array declaration", "[[ has no ]]"),
        ("Expected '\\]' at the end of a table declaration", "[ has no ]"),
        ("Unclosed array", "a list has no ], or a comma is missing in it"),
        ("Unclosed inline table", "a table has no }}, or a comma is missing in it"),
        (r"Illegal character '\\n'|Unterminated string", "a text has no closing quotes"),
        (
            r"Unescaped '\\' in a string|Invalid hex value",
            "within \"…\" a backslash is written twice; or write the text as '…'",
        ),
        ("Expected newline or end of document after a statement", "something follows the value on its line"),
    )
)

KEY_PARTS_LIMIT = (
    100  # Python's reader takes time by the square of them; no key that means anything has more than a few
)
_TOKEN = re.compile(  # each branch takes all that it began with, so that no text is read twice
    r"""
    \"{3} (?: [^"\\]++ | \\. | "(?!"") )*+ "{0,5}        # texts of several lines
    | '{3} (?: [^']++ | '(?!'') )*+ '{0,5}
    | \#[^\n]*+
    | (?P<key> PART (?: [ \t]*+ \. [ \t]*+ PART )*+ )      # a number, a date and a text are keys of few parts
    """.replace("PART", r"""(?: [A-Za-z0-9_-]++ | "(?: [^"\\\n]++ | \\. )*+ "? | '[^'\n]*+'? )"""),
    re.DOTALL | re.VERBOSE,
)
_PART = re.compile(r"""[A-Za-z0-9_-]++|"(?:[^"\\]++|\\.)*+"?|'[^']*+'?""", re.DOTALL)


class Complaint(NamedTuple):
    """Where the document is no TOML, and why. `line` counts from 1; None: at its end."""

    line: int | None
    column: int | None
    words: str


def complaint(message: str) -> Complaint:
    """What the message of a tomllib.TOMLDecodeError says."""
    at = _AT.search(message)
    said = message[: at.start()] if at else message
    line, column = (int(at[1]), int(at[2])) if at and at[1] else (None, None)
    for pattern, words in _WORDS:
        if found := pattern.fullmatch(said):
            path = ".".join(part.strip(" '") for part in found.groupdict().get("path", "").split(","))
            return Complaint(line, column, words.format(path=path.strip(".")))
    return Complaint(line, column, said)


def endless_key(text: str) -> int | None:
    """The line of the first dotted key that has too many parts to be read, whether or not `text` is TOML."""
    if all(line.count(".") < KEY_PARTS_LIMIT for line in text.split("\n")):  # a key ends with its line
        return None
    for token in _TOKEN.finditer(text):
        key = token["key"]
        if key and key.count(".") >= KEY_PARTS_LIMIT and len(_PART.findall(key)) > KEY_PARTS_LIMIT:
            return text.count("\n", 0, token.start()) + 1
    return None
