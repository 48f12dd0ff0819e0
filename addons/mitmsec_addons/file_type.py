"""The inspector `file_type`: what files are, whatever they are called.

    [inspector.file_type]
    words = ["executables", "macros"]     some of the four; without: all

    first HEAD_BYTES ──► its kind ──► executable?  encrypted?  not what name or Content-Type say?
    the rest, of documents and ZIP archives only ──► macros?  encrypted entries?

Nothing is unpacked: with `archives` in the same rule, each file in an archive is looked at likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import unquote, urlsplit

from mitmsec.core.inspection import Part, PartKind, place
from mitmsec.core.model import Finding, Severity
from mitmsec_addons.file_kinds import (
    HEAD_BYTES,
    OFFICE,
    OLE,
    PDF,
    RAR,
    RUN_BY_NAME,
    SCRIPT,
    ZIP,
    Family,
    FileKind,
    declared,
    extension,
    recognised,
)
from mitmsec_addons.zip_names import ZipName, ZipNames

EXECUTABLES, MACROS, ENCRYPTED, MISMATCHES = "executables", "macros", "encrypted", "mismatches"
ALL = (EXECUTABLES, MACROS, ENCRYPTED, MISMATCHES)
HARMLESS = (Family.DOCUMENT, Family.IMAGE, Family.MEDIA, Family.TEXT, Family.FONT)
_MACRO_NAMES = ("vbaproject.bin", "xl/macrosheets/", "basic/script-lc.xml")
_MARKS = {  # what stands somewhere in a document, and what follows from it
    OLE: (
        ("_VBA_PROJECT".encode("utf-16-le"), MACROS, "an OLE document with macros"),
        ("EncryptedPackage".encode("utf-16-le"), ENCRYPTED, "an encrypted Office document"),
    ),
    PDF: ((b"/Encrypt", ENCRYPTED, "an encrypted PDF document"),),
}
_MARK_BYTES = max(len(mark) for marks in _MARKS.values() for mark, _, _ in marks)
_RAR5, _RAR5_ENCRYPTION = b"Rar!\x1a\x07\x01\0", 4


class FileType:
    """Looks at bodies, messages of WebSockets, and files. Raises ValueError for words that are none of the four."""

    name = "file_type"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if unknown := [word for word in words if word not in ALL]:
            raise ValueError(f"{', '.join(map(repr, unknown))}: file_type finds {', '.join(ALL)}")
        self._wanted = frozenset(words or ALL)

    def open(self, part: Part) -> FileInspection | None:
        """None for heads and URLs."""
        return FileInspection(part, self._wanted) if part.kind in (PartKind.BODY, PartKind.STREAM) else None


class FileInspection:
    """One part being read. Keeps its first HEAD_BYTES until they are there, then less than a header."""

    __slots__ = ("_head", "_kind", "_names", "_part", "_tail", "_told", "_wanted")

    def __init__(self, part: Part, wanted: frozenset[str]) -> None:
        self._part, self._wanted = part, wanted
        self._head: bytes | None = b""
        self._kind: FileKind | None = None
        self._names = ZipNames()
        self._tail = b""
        self._told: set[str] = set()

    def feed(self, data: bytes) -> Sequence[Finding]:
        """What `data` makes certain."""
        if self._head is None:
            return self._more(data) if self._kind in (ZIP, OLE, PDF) else ()
        self._head += data
        return self._begin() if len(self._head) >= HEAD_BYTES else ()

    def close(self) -> Sequence[Finding]:
        """What a short file is."""
        return self._begin() if self._head else ()

    def _begin(self) -> list[Finding]:
        head, self._head = self._head or b"", None
        self._kind = recognised(head[:HEAD_BYTES])
        found = [*self._by_head(head), *self._by_name()]
        return found + (self._more(head) if self._kind in (ZIP, OLE, PDF) else [])

    def _by_head(self, head: bytes) -> Iterator[Finding]:
        kind = self._kind
        if kind is None:
            return
        if kind.family is Family.EXECUTABLE:
            yield from self._once(EXECUTABLES, kind.name, Severity.MEDIUM, 0.95)
        if kind.family is Family.SEALED or (kind is RAR and _is_sealed(head)):
            yield from self._once(ENCRYPTED, f"{kind.name}, encrypted", Severity.MEDIUM, 0.9)
        claimed = declared(self._file_name(), self._part.content_type)
        if claimed and kind.family not in {one.family for one in claimed} and not _is_wrapped(kind, claimed):
            worse = kind.family in (Family.EXECUTABLE, Family.ARCHIVE) and any(
                one.family in HARMLESS for one in claimed
            )
            severity = Severity.HIGH if worse else Severity.LOW
            says = " or ".join(sorted(one.name for one in claimed)[:2])
            yield from self._once(MISMATCHES, f"{kind.name} that says it is {says}", severity, 0.8)

    def _by_name(self) -> Iterator[Finding]:
        """What a double click would run. Only of names that somebody gave a file: web pages' scripts are none."""
        if (
            ending := extension(self._part.file_name or self._part.name)
        ) in RUN_BY_NAME and EXECUTABLES not in self._told:
            yield from self._once(EXECUTABLES, f"a file that is run by its name (.{ending})", Severity.MEDIUM, 0.7)

    def _more(self, data: bytes) -> list[Finding]:
        """What stands anywhere in a document or a ZIP archive."""
        if self._kind is ZIP:
            return [found for name in self._names.feed(data) for found in self._by_entry(name)]
        data = self._tail + data
        self._tail = data[-(_MARK_BYTES - 1) :]
        marks = _MARKS[self._kind] if self._kind is not None else ()
        return [
            found
            for mark, what, summary in marks
            if mark in data
            for found in self._once(what, summary, Severity.HIGH if what == MACROS else Severity.MEDIUM, 0.9)
        ]

    def _by_entry(self, entry: ZipName) -> Iterator[Finding]:
        if entry.encrypted:
            yield from self._once(ENCRYPTED, "a ZIP archive with encrypted entries", Severity.MEDIUM, 1.0)
        if any(mark in entry.name.lower() for mark in _MACRO_NAMES):
            yield from self._once(MACROS, "an Office document with macros", Severity.HIGH, 0.95)
        for begin, kind in OFFICE.items():
            if kind.family is Family.EXECUTABLE and entry.name == begin:
                yield from self._once(EXECUTABLES, kind.name, Severity.MEDIUM, 0.9)

    def _once(self, what: str, summary: str, severity: Severity, confidence: float) -> Iterator[Finding]:
        if what in self._told or what not in self._wanted:
            return
        self._told.add(what)
        yield Finding(
            detector=FileType.name,
            severity=severity,
            confidence=confidence,
            summary=summary,
            evidence="",
            location=place(self._part),
        )

    def _file_name(self) -> str:
        """As it was given, or the last word of the URL's path."""
        if self._part.file_name or self._part.name:
            return self._part.file_name or self._part.name
        try:
            return unquote(urlsplit(self._part.url).path.rpartition("/")[2])
        except ValueError:
            return ""


def _is_wrapped(kind: FileKind, claimed: frozenset[FileKind]) -> bool:
    """A ZIP archive may well be one of the documents and programs that are made of one, and a script is text."""
    if kind is SCRIPT:
        return any(one.family is Family.TEXT for one in claimed)
    return kind is ZIP and any(one in OFFICE.values() for one in claimed)


def _is_sealed(head: bytes) -> bool:
    """Whether a RAR archive's names are encrypted: RAR 5 begins with such a block, RAR 4 has a flag."""
    if head.startswith(_RAR5):
        return head[len(_RAR5) + 5 : len(_RAR5) + 6] == bytes([_RAR5_ENCRYPTION])
    return len(head) > 11 and head[9] == 0x73 and bool(head[10] & 0x80)
