"""The inspector `yara`: what the operator's rules say about whole bodies, asked of a process that has them compiled.

    [inspector.yara]
    rules = ["@rules/own.yar"]

    feed ──► kept, up to `limit_bytes`
    close ──► scan (another process's work) ──► Hits ──► a finding for each rule that matches

YARA has no streams: a condition may ask about any byte of a content, so it is read when all of it is there. In a worker
nothing is scanned: yara-x would hold its loop for the whole of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from mitmsec.core.inspection import Part, Unread, place
from mitmsec.core.model import Finding, Severity
from mitmsec.core.rule_hits import CONFIDENCE, Hit, Hits

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
    limit_bytes = 16 << 20

    def __init__(self, words: tuple[str, ...] = (), scan: Scan = nobody) -> None:
        if not words:
            raise ValueError("yara needs rules, and looks for nothing without")
        self.scan = scan
        self.held_bytes = 0
        """In all its inspections together."""

    def begin(self, part: Part) -> YaraInspection:
        """Every body and every message is scanned."""
        return YaraInspection(self, part)


class YaraInspection:
    """One part being kept."""

    def __init__(self, yara: Yara, part: Part) -> None:
        self._yara, self._part = yara, part
        self._pieces: list[bytes] | None = []
        self._size_bytes = 0

    async def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """Nothing before the end; once, that too much is being kept."""
        if self._pieces is None:
            return ()
        if self._yara.held_bytes + len(data) > HELD_LIMIT_BYTES:
            self.abandon()
            why = f"{HELD_LIMIT_BYTES >> 20} MiB of other content wait to be scanned"
            return (Unread(why=why, location=place(self._part)),)
        self._pieces.append(data)
        self._size_bytes += len(data)
        self._yara.held_bytes += len(data)
        return ()

    async def close(self) -> Sequence[Finding | Unread]:
        """What the rules say. Raises OSError."""
        if not self._pieces:
            return ()
        content = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        try:
            return told(await self._yara.scan(self._part.flow, content), self._part)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Keep nothing more."""
        self._yara.held_bytes -= self._size_bytes
        self._pieces, self._size_bytes = None, 0


def told(hits: Hits, part: Part) -> Sequence[Finding | Unread]:
    """What was said about `part`, as findings."""
    findings: list[Finding | Unread] = [_finding(hit, part) for hit in hits.hits]
    if hits.more:
        findings.append(_of(part, f"{hits.more} more YARA rules match", None))
    if hits.error:
        findings.append(Unread(why=hits.error, location=place(part)))
    return findings


def _finding(hit: Hit, part: Part) -> Finding:
    """Nothing of the content is in it. It has no offset to mask at: a rule is more than one of its patterns."""
    summary = f"YARA rule {hit.rule}" + (f": {hit.description}" if hit.description else "")
    evidence = f"{hit.pattern}, {hit.size_bytes} bytes" if hit.pattern else ""
    return _of(part, summary, hit.offset, evidence=evidence, severity=hit.severity, confidence=hit.confidence)


def _of(
    part: Part,
    summary: str,
    offset: int | None,
    *,
    evidence: str = "",
    severity: Severity = Severity.MEDIUM,
    confidence: float = CONFIDENCE,
) -> Finding:
    return Finding(
        detector=Yara.name,
        severity=severity,
        confidence=confidence,
        summary=summary,
        evidence=evidence,
        location=place(part, offset),
    )
