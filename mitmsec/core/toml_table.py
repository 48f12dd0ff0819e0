"""Reading a TOML table key by key, with every error kept instead of the first one raised.

A `Table` hands out values of the wanted type and notes what is wrong with the others; `close` notes the keys that
nobody asked for. Whoever reads goes on with the default and lets the notes decide at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from enum import StrEnum

from mitmsec.core.model import Value
from mitmsec.core.toml_lines import KeyPath, LineIndex

LATER = "not supported by this version"


class ConfigError(Value, frozen=True, order=True):
    """One thing that is wrong, and where.

    `line` counts from 1; 0 where there is no text to count in. `key` is empty where the file has no keys. `name` is
    that of the rule or application, where it has one.
    """

    file: str
    line: int
    key: str
    message: str
    name: str = ""

    def __str__(self) -> str:
        """As editors expect it; people know a rule by its name, not by its number."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        section, _, key = self.key.partition(".")
        parts = (f'{section.partition("[")[0]} "{self.name}"', key) if self.name else (self.key,)
        return ": ".join(part for part in (where, *parts, self.message) if part)


class Notes:
    """The errors found so far in one file."""

    def __init__(self, file: str, lines: LineIndex) -> None:
        self._file = file
        self._lines = lines
        self._names: dict[KeyPath, str] = {}
        self.errors: list[ConfigError] = []

    def add(self, path: KeyPath, message: str) -> None:
        name = self._names.get(path[:2], "")
        self.errors.append(
            ConfigError(file=self._file, line=self.line(path), key=key_text(path), message=message, name=name)
        )

    def named(self, path: KeyPath, name: str) -> None:
        """From here on errors of the table at `path` (an item of an array of tables) say this name."""
        self._names[path] = name

    def line(self, path: KeyPath) -> int:
        return self._lines.line(path)


def key_text(path: KeyPath) -> str:
    """rule[2].port[0]; items count from 0."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Table:
    """One table of the document at `path`. Each method takes a key out of it."""

    def __init__(self, value: dict[str, object], path: KeyPath, notes: Notes) -> None:
        self._value = value
        self._asked: set[str] = set()
        self.path = path
        self.notes = notes

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def note(self, message: str, *key: str | int) -> None:
        self.notes.add((*self.path, *key), message)

    def raw(self, key: str) -> object:
        """The value as TOML gave it, None where the key is absent."""
        self._asked.add(key)
        return self._value.get(key)

    def text(self, key: str, *, required: bool = False) -> str | None:
        value = self.raw(key)
        if value is None:
            if required:
                self.note("is missing", key)
            return None
        if not isinstance(value, str) or not value.strip():
            self.note(f"a text is wanted, not {kind_of(value)}", key)
            return None
        return value

    def texts(self, key: str, *, may_be_empty: bool = False) -> tuple[tuple[int, str], ...]:
        """The texts of a list, each with its place in it."""
        items = list(self.items(key, may_be_empty=may_be_empty))
        for place, value in items:
            if not isinstance(value, str) or not value.strip():
                self.note(f"a text is wanted, not {kind_of(value)}", key, place)
        return tuple((place, value) for place, value in items if isinstance(value, str) and value.strip())

    def items(self, key: str, *, may_be_empty: bool = False) -> Iterator[tuple[int, object]]:
        """The items of a list, unchecked, each with its place in it."""
        value = self.raw(key)
        if isinstance(value, list):
            if not value and not may_be_empty:
                self.note("an empty list can never match; leave the key out", key)
            yield from enumerate(value)
        elif value is not None:
            self.note(f"a list is wanted, not {kind_of(value)}", key)

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            self.note(f"true or false is wanted, not {kind_of(value)}", key)
        return value is True

    def choice[E: StrEnum](self, key: str, of: type[E], default: E | None, later: Collection[str] = ()) -> E | None:
        """A word of `of`. Words of `later` are known, but not to this version. No default: the key is required."""
        if key in self or default is None:
            word = self.text(key, required=True)
            if word in later:
                self.note(f'"{word}" is {LATER}', key)
            elif word is not None and word not in list(of):
                self.note(f'"{word}" is not one of {", ".join(of)}{meant(word, list(of))}', key)
            elif word is not None:
                return of(word)
        else:
            self.raw(key)
        return default

    def tables(self, key: str) -> Iterator[Table]:
        """The tables of an array of tables."""
        value = self.raw(key)
        if value is None:
            return
        if not isinstance(value, list):
            self.note(f"write [[{key}]], with two brackets: there can be several", key)
            return
        for place, item in enumerate(value):
            if isinstance(item, dict):
                yield Table(item, (*self.path, key, place), self.notes)
            else:
                self.note(f"a table is wanted, not {kind_of(item)}", key, place)

    def table(self, key: str) -> Table:
        """A table inside this one; empty where absent."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            self.note(f"a table is wanted, not {kind_of(value)}: write [{key_text((*self.path, key))}]", key)
        return Table(value if isinstance(value, dict) else {}, (*self.path, key), self.notes)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._value)

    def close(self, *, later: Collection[str] = ()) -> None:
        """Note every key that was not asked for; those of `later` are known, but not to this version."""
        for key in self._value.keys() - self._asked:
            known = [*self._asked, *later]
            self.note(LATER if key in later else f"unknown key{meant(key, known)}", key)


def meant(word: str, known: Collection[str]) -> str:
    """A question for whoever may have written another word that is known; empty where none is like it."""
    close = get_close_matches(word, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def kind_of(value: object) -> str:
    """What stands there, in words."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'the text "{value}"' if value.strip() else "an empty text"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"
