"""The inspector `keywords`: the operator's own words, wherever they stand in what a program sends or receives.

    [inspector.keywords]
    words = ["project falcon", "=CONFIDENTIAL", "==)"]    "=" asks for whole words, "==" is an equals sign itself
    lists = ["@words.txt"]                                one a line

Content is read in slices. The end of what is known is looked at again together with the next slice, so the findings
are the same however the content was cut:

    ──── decided ────┐┌── a match that begins here may yet become another one: it waits ──┐
    … the project fal││con …

Each keyword is looked for by itself: where one stands inside another, both are told. A finding names the keyword,
which is the operator's own; the text around it is never shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mitmsec.core.inspection import Part, place
from mitmsec.core.model import NOTHING_CLEAR, Clear, Finding, Severity
from mitmsec_addons.spelling import BORDER_BYTES, Needle, Word, needles

FINDINGS_LIMIT = 10  # told one by one in each part; the others are only counted
WORDS_LIMIT = 1000
WORD_LIMIT_CHARACTERS = 200
SHORT_CHARACTERS = 5  # shorter words stand in binary data by chance


class Keywords:
    """Looks for `words`. Raises ValueError for words that cannot be looked for, naming each."""

    name = "keywords"

    def __init__(self, words: tuple[str, ...]) -> None:
        parsed = {(word.text.casefold(), word.whole): word for word in map(_parsed, words)}
        errors = [error for word in parsed.values() if (error := _flaw(word))]
        if not parsed:
            errors.append("there are no keywords to look for")
        if len(parsed) > WORDS_LIMIT:
            errors.append(f"there are {len(parsed)} keywords, more than {WORDS_LIMIT}")
        if errors:
            raise ValueError("; ".join(errors))
        self._needles = tuple(needle for word in parsed.values() for needle in needles(word))

    def open(self, part: Part) -> KeywordInspection:
        """Keywords are looked for in every part."""
        return KeywordInspection(self._needles, part)


class KeywordInspection:
    """One part being read. Holds as many bytes as the longest keyword may take, and a slice while it is looked at."""

    __slots__ = ("_at", "_buffer", "_needles", "_offset", "_part", "_past", "_reach_bytes", "_told")

    def __init__(self, needles: tuple[Needle, ...], part: Part) -> None:
        self._needles = needles
        self._reach_bytes = max(needle.reach_bytes for needle in needles)
        self._part = part
        self._buffer = b""
        self._offset = 0  # of the buffer's first byte in the part
        self._at = 0  # where in the buffer the search goes on
        self._past: dict[Needle, int] = {}  # where in the part its last match ended
        self._told = 0

    def feed(self, data: bytes) -> Sequence[Finding]:
        """The keywords that `data` makes certain."""
        self._buffer += data
        findings = self._search(len(self._buffer) - self._reach_bytes)
        kept = max(self._at - BORDER_BYTES, 0)
        self._buffer = self._buffer[kept:]
        self._offset += kept
        self._at -= kept
        return findings

    def close(self) -> Sequence[Finding]:
        """The keywords at the very end, and a count of those that were not told one by one."""
        findings = self._search(len(self._buffer))
        if (more := self._told - FINDINGS_LIMIT) > 0:
            findings.append(self._finding(f"{more} more keyword hits in the same part", "", 1.0, None))
        return findings

    def _search(self, until: int) -> list[Finding]:
        """Findings that begin at or before `until` in the buffer, in order; the search has then passed it."""
        if until < self._at:
            return []
        hits: list[tuple[int, int, str]] = []
        lowered = self._buffer.lower()
        has_nul = 0 in self._buffer
        for needle in self._needles:
            if has_nul or not needle.has_nul:
                hits += self._hits(needle, lowered, until)
        self._at = until + 1
        room = max(FINDINGS_LIMIT - self._told, 0)
        self._told += len(hits)
        return [self._hit(*hit) for hit in sorted(hits)[:room]]

    def _hits(self, needle: Needle, lowered: bytes, until: int) -> Iterator[tuple[int, int, str]]:
        at = max(self._at, self._past.get(needle, 0) - self._offset)
        for begin, end in needle.found(self._buffer, lowered, at):
            if begin > until:
                return
            self._past[needle] = self._offset + end
            yield begin, end, needle.word.text

    def _hit(self, begin: int, end: int, word: str) -> Finding:
        confidence = 0.9 if len(word) >= SHORT_CHARACTERS else 0.6
        clear = Clear.of(bytes(self._buffer[begin:end]))
        return self._finding(f'keyword "{word}"', _redacted(word), confidence, self._offset + begin, end - begin, clear)

    def _finding(
        self,
        summary: str,
        evidence: str,
        confidence: float,
        offset: int | None,
        size_bytes: int = 0,
        clear: Clear = NOTHING_CLEAR,
    ) -> Finding:
        return Finding(
            detector=Keywords.name,
            severity=Severity.MEDIUM,
            confidence=confidence,
            summary=summary,
            evidence=evidence,
            location=place(self._part, offset),
            offset=offset,
            size_bytes=size_bytes,
            clear=clear,
        )


def _parsed(written: str) -> Word:
    text = " ".join(written.split())
    if text.startswith("=="):
        return Word(text[1:])
    return Word(text[1:].lstrip(), whole=True) if text.startswith("=") else Word(text)


def _flaw(word: Word) -> str | None:
    if len(word.text) < 2:
        return f"keyword {word.text!r} has fewer than two characters"
    if len(word.text) > WORD_LIMIT_CHARACTERS:
        return f"keyword {word.text[:20] + '…'!r} has more than {WORD_LIMIT_CHARACTERS} characters"
    return None


def _redacted(word: str) -> str:
    return f"{word[0]}… ({len(word)} characters)"
