"""The easy way to write an inspector: content of bounded length, looked at once, when all of it is there.

    class Tickets(WholeInspector):
        name = "tickets"

        def look(self, part, content):
            for hit in re.finditer(rb"TICKET-[0-9]{6}", content):
                yield self.finding(part, hit.start(), "a ticket number", evidence="TICKET-…")

What is longer than `limit_bytes` is not looked at, which is told as such. An inspector that must read content of any
length keeps a window of its own (`keywords`, `sightings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mitmsec.core.inspection import Part, Unread, place
from mitmsec.core.model import Clear, Finding, Severity

LIMIT_BYTES = 4 << 20


class WholeInspector:
    """A subclass says its `name` and how to `look`. `words` are those of the policy for that name."""

    name = ""
    limit_bytes = LIMIT_BYTES

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        self.words = words

    def wants(self, part: Part) -> bool:
        """Whether `part` is any business of this inspector. Every one is, unless a subclass says otherwise."""
        return True

    def look(self, part: Part, content: bytes) -> Iterable[Finding]:
        """The findings in `content`, which is all of `part`, decoded."""
        raise NotImplementedError

    def finding(
        self,
        part: Part,
        offset: int | None,
        summary: str,
        *,
        evidence: str = "",
        severity: Severity = Severity.MEDIUM,
        confidence: float = 0.9,
        size_bytes: int = 0,
        clear: bytes = b"",
    ) -> Finding:
        """A finding of this inspector's. `summary` and `evidence` are recorded: what is secret stands in neither.

        Where `size_bytes` says how long it is, it can be masked. `clear` is what was found, as it is.
        """
        return Finding(
            detector=self.name,
            severity=severity,
            confidence=confidence,
            summary=summary,
            evidence=evidence,
            location=place(part, offset),
            offset=offset if size_bytes else None,
            size_bytes=size_bytes,
            clear=Clear.of(clear),
        )

    def open(self, part: Part) -> WholeInspection | None:
        """An inspection of `part`, where it is wanted."""
        return WholeInspection(self, part) if self.wants(part) else None


class WholeInspection:
    """One part being kept, up to its inspector's `limit_bytes`."""

    __slots__ = ("_held", "_inspector", "_part")

    def __init__(self, inspector: WholeInspector, part: Part) -> None:
        self._inspector, self._part = inspector, part
        self._held: bytearray | None = bytearray()

    def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """Nothing, before the end; once, that there is too much of it."""
        if self._held is None:
            return ()
        self._held += data
        if len(self._held) <= self._inspector.limit_bytes:
            return ()
        self._held = None
        why = f"longer than {self._inspector.limit_bytes} bytes, which is all that it keeps"
        return (Unread(why=why, location=place(self._part)),)

    def close(self) -> Sequence[Finding | Unread]:
        """What stands in it."""
        return () if self._held is None else [*self._inspector.look(self._part, bytes(self._held))]
