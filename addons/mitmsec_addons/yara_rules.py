"""Rules of YARA, compiled by yara-x and asked about content.

    RuleFile* ──► compiled ──► bytes ──► RuleSet ──► scan(content) ──► Hits
                     └─ RulesRefused: each error with its file and line

yara-x holds the interpreter for a whole scan, and takes seconds to compile thousands of rules: neither has business on
a loop that serves others. It is imported only here, and only when it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from mitmsec.core.model import Value
from mitmsec.core.rule_hits import Hit, Hits, hit

HITS_LIMIT = 10  # told one by one
SCAN_LIMIT_S = 10  # on the clock, for one content; yara-x counts whole seconds
MISSING = "yara-x is not installed: there is no wheel of it for Windows on Arm; leave yara out of the policy there"


class RuleFile(Value, frozen=True):
    """One file of rules. `name` is as the policy has it: errors say it."""

    name: str
    text: str


class Flaw(Value, frozen=True):
    """Something that is wrong in a file of rules; `line` counts from 1, or is 0."""

    file: str
    line: int
    message: str


class RulesRefused(ValueError):
    """They do not compile: `flaws`, of all files."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("; ".join(f"{one.file}:{one.line}: {one.message}" for one in flaws))
        self.flaws = tuple(flaws)


class NoYara(ValueError):
    """There is no yara-x on this machine."""


def yara_x() -> ModuleType:
    """The engine. Raises NoYara."""
    try:
        import yara_x as engine
    except ImportError:
        raise NoYara(MISSING) from None
    return engine


def compiled(files: Sequence[RuleFile]) -> bytes:
    """For `RuleSet`, by the same yara-x on a machine like this. Raises RulesRefused and NoYara.

    Each file is a namespace of its own: two may have rules of one name. A file includes no other: what is compiled is
    what the policy names, and nothing else on this machine.
    """
    engine = yara_x()
    compiler = engine.Compiler(includes_enabled=False)
    flaws: list[Flaw] = []
    for file in files:
        compiler.new_namespace(file.name)
        known = len(compiler.errors())
        try:
            compiler.add_source(file.text, origin=file.name)
        except engine.CompileError:
            flaws += [_flaw(file, error) for error in compiler.errors()[known:]]
    if flaws:
        raise RulesRefused(flaws)
    made = io.BytesIO()
    compiler.build().serialize_into(made)
    return made.getvalue()


def _flaw(file: RuleFile, error: Any) -> Flaw:
    """With the first of what yara-x says about the place, which is more than its title."""
    labels = [label["text"] for label in error.get("labels", ()) if label.get("text")]
    message = ": ".join(dict.fromkeys([error["title"], *labels[:1]]))
    return Flaw(file=file.name, line=error.get("line") or 0, message=message)


class RuleSet:
    """What `compiled` gave; it is believed: whoever makes one can do here what he likes. Raises OSError for others.

    The first scan starts a thread, which counts the seconds of all.
    """

    def __init__(self, content: bytes, *, limit_s: int = SCAN_LIMIT_S) -> None:
        self._engine = yara_x()
        self._scanner = self._engine.Scanner(self._engine.Rules.deserialize_from(io.BytesIO(content)))
        self._scanner.set_timeout(limit_s)
        self._scanner.fast_scan(True)  # else content that repeats a pattern takes so long that it is not scanned
        self._limit_s = limit_s

    def scan(self, content: bytes) -> Hits:
        """What the rules say about it, at most for the limit."""
        try:
            matching = self._scanner.scan(content).matching_rules
        except self._engine.TimeoutError:
            return Hits(error=f"took longer than {self._limit_s} s to scan")
        except self._engine.ScanError as error:
            return Hits(error=f"cannot be scanned: {type(error).__name__}")
        told = tuple(_hit(rule) for rule in matching[:HITS_LIMIT])
        return Hits(hits=told, more=max(0, len(matching) - HITS_LIMIT))


def _hit(rule: Any) -> Hit:
    return hit(rule.identifier, rule.metadata, _places(rule))


def _places(rule: Any) -> Iterator[tuple[int, str, int]]:
    """The first of each pattern."""
    for pattern in rule.patterns:
        matches = pattern.matches
        if matches:
            yield matches[0].offset, pattern.identifier, matches[0].length
