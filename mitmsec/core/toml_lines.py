"""On which line does a key of a TOML document stand?

Python's own reader forgets positions. This walks a text that tomllib has already accepted, so it only has to find its
way, never to judge: headers, keys and values are skipped over by their form.

    [[rule]]                → ("rule", 0)
    port = [443,            → ("rule", 0, "port"), ("rule", 0, "port", 0)
            "8000-8999"]    →                      ("rule", 0, "port", 1)
"""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}(?!")', re.DOTALL),
    re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\])*"'),
    re.compile(r"'[^']*'"),
)
_SCALAR = re.compile(r"[^,\]}#\n]+")  # number, date, boolean


class LineIndex:
    """Key path → line, from 1."""

    __slots__ = ("_lines",)

    def __init__(self, lines: dict[KeyPath, int]) -> None:
        self._lines = lines

    def line(self, path: KeyPath) -> int:
        """The line of `path`, else of the nearest thing that holds it, else 1."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def index(text: str) -> LineIndex:
    """The lines of all keys, tables and array items of `text`, which tomllib.loads must have accepted."""
    walk = _Walk(text)
    walk.document()
    return LineIndex(walk.lines)


class _Walk:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted_to = 0
        self._line = 1
        self._arrays: dict[KeyPath, int] = {}  # arrays of tables: the number of the last one
        self.lines: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while self._more():
            if self._sees("[["):
                table = self._header("]]")
            elif self._sees("["):
                table = self._header("]")
            else:
                self._pair(table)

    def _more(self) -> bool:
        self._skip(_BLANK)
        return self._at < len(self._text)

    def _header(self, close: str) -> KeyPath:
        start = self._at
        self._at += len(close)
        written = self._key()
        self._at = self._text.index(close, self._at) + len(close)
        path = (*self._within(written[:-1]), written[-1])
        if close == "]]":
            self._mark(path, start)
            number = self._arrays[path] = self._arrays.get(path, -1) + 1
            path = (*path, number)
        self._mark(path, start)
        return path

    def _within(self, written: KeyPath) -> KeyPath:
        """The real path of a header's parents: a name of an array of tables means its last table."""
        path: KeyPath = ()
        for part in written:
            path = (*path, part)
            if path in self._arrays:
                path = (*path, self._arrays[path])
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = table
        for part in self._key():
            path = (*path, part)
            self._mark(path, start)
        self._at = self._text.index("=", self._at) + 1
        self._value(path)

    def _key(self) -> KeyPath:
        """A dotted key; stops behind its last part."""
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            parts.append(self._key_part())
            end = self._at
            self._skip(_BLANK)
            if not self._sees("."):
                self._at = end
                return tuple(parts)
            self._at += 1

    def _key_part(self) -> str:
        if bare := self._skip(_BARE):
            return bare
        quoted = next(found for pattern in _STRINGS[2:] if (found := self._skip(pattern)))
        return next(iter(tomllib.loads(f"{quoted} = 0")))

    def _value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        if self._sees("["):
            self._array(path)
        elif self._sees("{"):
            self._inline_table(path)
        elif not any(self._skip(pattern) for pattern in _STRINGS):
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        number = 0
        while self._next_item("]"):
            self._mark((*path, number), self._at)
            self._value((*path, number))
            number += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._next_item("}"):
            self._pair(path)
        self._at += 1

    def _next_item(self, close: str) -> bool:
        self._skip(_BLANK)
        if self._sees(","):
            self._at += 1
            self._skip(_BLANK)
        return not self._sees(close)

    def _sees(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> str | None:
        """Step over what `pattern` finds here; what it was, None where it is not here."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _mark(self, path: KeyPath, at: int) -> None:
        """The first mention counts. Positions only ever grow, so lines are counted on from the last one."""
        if at > self._counted_to:
            self._line += self._text.count("\n", self._counted_to, at)
            self._counted_to = at
        self.lines.setdefault(path, self._line)
