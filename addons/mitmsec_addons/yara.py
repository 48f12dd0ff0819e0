"""The inspector `yara`: what the operator's rules say about whole bodies, asked of a process that has them compiled.

    [inspector.yara]
    rules = ["@rules/own.yar"]

    feed ──► kept, up to PART_LIMIT_BYTES          what unpackers of the rule show ──► `within`: kept, each by itself
    close ──► scan (another process's work)        the next feed, or close ──► scan
                 └─► Hits ──► a finding for each rule that matches

YARA has no streams: a condition may ask about any byte of a content, so it is read when all of it is there. In a worker
nothing is scanned: yara-x would hold its loop for the whole of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from mitmsec.core.inspection import Part, PartKind, Unread, place
from mitmsec.core.model import NOTHING_CLEAR, Clear, Finding, Severity
from mitmsec.core.rule_hits import CONFIDENCE, Hit, Hits

PART_LIMIT_BYTES = 16 << 20
HELD_LIMIT_BYTES = 256 << 20

type Scan = Callable[[str, bytes], Awaitable[Hits]]
"""Has a content of a flow scanned. Raises OSError where nobody scans it."""


async def nobody(flow: str, content: bytes) -> Hits:
    """Where no scanner is at hand."""
    raise ConnectionRefusedError("there is no scanner")


class Yara:
    """Has bodies and messages scanned. `words` name the files of rules. Raises ValueError where there are none."""

    name = "yara"
    limit_s = 60.0
    limit_bytes = 1 << 40  # what is too long is not scanned, but what lies in it is

    def __init__(self, words: tuple[str, ...] = (), scan: Scan = nobody) -> None:
        if not words:
            raise ValueError("yara needs rules, and looks for nothing without")
        self.scan = scan
        self.held_bytes = 0
        """In all its inspections together."""
        self.unfinished: dict[Kept, None] = {}
        """What is kept and not being scanned yet, the oldest first."""

    def begin(self, part: Part) -> YaraInspection:
        """Every body and every message is scanned."""
        return YaraInspection(self, part)

    def make_room(self, kept: Kept, more_bytes: int) -> None:
        """For more of `kept`: what is largest is lost, itself perhaps; else a few that stall would keep out all others.

        What is being scanned makes room by itself.
        """
        while kept.is_kept and self.held_bytes + more_bytes > HELD_LIMIT_BYTES:
            largest = max(self.unfinished, default=kept, key=lambda one: one.size_bytes)
            if largest.size_bytes < kept.size_bytes + more_bytes:
                largest = kept
            largest.lose(f"{HELD_LIMIT_BYTES >> 20} MiB of other content wait to be scanned")


class Kept:
    """One content, as long as it is not too much."""

    def __init__(self, yara: Yara, part: Part) -> None:
        self._yara, self.part = yara, part
        self._content: bytearray | None = bytearray()  # in one piece: many small ones would take many times their size
        self._lost: Unread | None = None
        self.size_bytes = 0

    @property
    def is_kept(self) -> bool:
        """It has been, until now."""
        return self._content is not None

    def add(self, data: bytes) -> Sequence[Unread]:
        """Once, that it is not kept any more."""
        if self._content is not None and self.size_bytes + len(data) > PART_LIMIT_BYTES:
            self.lose(f"longer than {PART_LIMIT_BYTES} bytes, which is all that is scanned")
        self._yara.make_room(self, len(data))
        if self._content is None:
            return self._what_is_lost()
        self._content += data
        self.size_bytes += len(data)
        self._yara.held_bytes += len(data)
        self._yara.unfinished[self] = None
        return ()

    def lose(self, why: str) -> None:
        """Keep nothing more, and say so when asked next."""
        self.drop()
        self._lost = Unread(why=why, location=place(self.part))

    def _what_is_lost(self) -> Sequence[Unread]:
        lost, self._lost = self._lost, None
        return () if lost is None else (lost,)

    async def scanned(self) -> Sequence[Finding | Unread]:
        """What the rules say; nothing of what is not kept, but that, once. Raises OSError."""
        if not self._content:
            return self._what_is_lost()
        content, self._content = bytes(self._content), None
        self._yara.unfinished.pop(self, None)
        try:
            return told(await self._yara.scan(self.part.flow, content), self.part, content)
        finally:
            self.drop()

    def drop(self) -> None:
        """Keep nothing more."""
        self._yara.unfinished.pop(self, None)
        self._yara.held_bytes -= self.size_bytes
        self._content, self.size_bytes = None, 0


class YaraInspection:
    """One part being kept, and what unpackers find in it."""

    def __init__(self, yara: Yara, part: Part) -> None:
        self.within = Within(yara)
        self._whole = Kept(yara, part)

    async def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """What the rules say about what has been unpacked by now; once, that it is too much itself. Raises OSError."""
        return [*self._whole.add(data), *await self._unpacked()]

    async def close(self) -> Sequence[Finding | Unread]:
        """What the rules say about the rest. Raises OSError."""
        return [*await self._unpacked(), *await self._whole.scanned()]

    async def _unpacked(self) -> Sequence[Finding | Unread]:
        found: list[Finding | Unread] = []
        while self.within.complete:
            found += await self.within.complete.popleft().scanned()
        return found

    def abandon(self) -> None:
        """Keep nothing more."""
        self._whole.drop()
        self.within.abandon()


class Within:
    """The inspector of what lies in a part: it keeps each file until that is complete, and finds nothing itself."""

    name = Yara.name

    def __init__(self, yara: Yara) -> None:
        self._yara = yara
        self._open: set[Kept] = set()
        self._is_over = False
        self.complete = deque[Kept]()

    def open(self, part: Part) -> WithinInspection | None:
        """Of a file in it; the part itself is somebody else's."""
        if self._is_over or part.kind is not PartKind.BODY or not part.path:
            return None
        kept = Kept(self._yara, part)
        self._open.add(kept)
        return WithinInspection(self, kept)

    def ends(self, kept: Kept) -> None:
        """It is complete."""
        if kept in self._open:
            self._open.remove(kept)
            self.complete.append(kept)

    def abandon(self) -> None:
        """Keep nothing more."""
        self._is_over = True
        for kept in (*self._open, *self.complete):
            kept.drop()
        self._open.clear()
        self.complete.clear()


class WithinInspection:
    """One file being kept."""

    def __init__(self, within: Within, kept: Kept) -> None:
        self._within, self._kept = within, kept

    def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """Nothing but, once, that it is too much."""
        return self._kept.add(data)

    def close(self) -> Sequence[Finding | Unread]:
        """Nothing yet: it is scanned next."""
        self._within.ends(self._kept)
        return ()


def told(hits: Hits, part: Part, content: bytes) -> Sequence[Finding | Unread]:
    """What was said about `part`, all of whose content this is, as findings."""
    findings: list[Finding | Unread] = [_finding(hit, part, content) for hit in hits.hits]
    if hits.more:
        findings.append(_of(part, f"{hits.more} more YARA rules match", None))
    if hits.error:
        findings.append(Unread(why=hits.error, location=place(part)))
    return findings


def _finding(hit: Hit, part: Part, content: bytes) -> Finding:
    """It has no offset to mask at: a rule is more than one of its patterns. The first place of one is its `clear`."""
    summary = f"YARA rule {hit.rule}" + (f": {hit.description}" if hit.description else "")
    evidence = f"{hit.pattern}, {hit.size_bytes} bytes" if hit.pattern else ""
    at = hit.offset
    clear = NOTHING_CLEAR if at is None else Clear.of(content[at : at + hit.size_bytes])
    return _of(part, summary, at, evidence=evidence, severity=hit.severity, confidence=hit.confidence, clear=clear)


def _of(
    part: Part,
    summary: str,
    offset: int | None,
    *,
    evidence: str = "",
    severity: Severity = Severity.MEDIUM,
    confidence: float = CONFIDENCE,
    clear: Clear = NOTHING_CLEAR,
) -> Finding:
    return Finding(
        detector=Yara.name,
        severity=severity,
        confidence=confidence,
        summary=summary,
        evidence=evidence,
        location=place(part, offset),
        clear=clear,
    )
