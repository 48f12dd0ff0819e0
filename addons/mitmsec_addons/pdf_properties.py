"""Properties of a PDF (its information dictionary: ISO 32000-2, 14.3.3), as text: labels of documents stand there.

    /Title <FEFF00530065…>                   ──► Title: Se…
    /MSIP_Label_1a2b_Name (Secret\\040stuff)  ──► MSIP_Label_1a2b_Name: Secret stuff

It follows no reference: whatever dictionary has such a property. So titles of bookmarks are told as well. What stands
in the clear in the file is found there, too. Objects are looked through piece by piece, and within bounds.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator, Iterator

from mitmsec_addons.pdf_text import literal

TOLD_LIMIT = 10_000
TOLD_LIMIT_BYTES = 256 << 10  # as they are written
BEGINS_LIMIT = 50_000  # of strings by a name, told or not
PIECE_BYTES = 1 << 16
_BEGIN = re.compile(rb"/[A-Za-z][\w.+#-]{0,127}+\s{0,16}+(?:\(|<[0-9A-Fa-f\s])")
_BEGIN_LIMIT_BYTES = 147
_MARK_LIMIT_BYTES = 12  # of an encoding, in octal numbers
_CONTINUED = re.compile(rb"\\(?:\r\n|\r|\n)")
_PROPERTY = re.compile(  # nothing is tried twice: `+` behind a count
    rb"/([A-Za-z][\w.+#-]{0,127}+)\s{0,16}+"
    rb"(?:\(((?:[^()\\]++|\\.|\((?:[^()\\]++|\\.){0,4096}+\)){0,4096}+)\)|<([0-9A-Fa-f\s]{4,8192}+)>)",
    re.DOTALL,
)
_USUAL = frozenset({b"Author", b"Category", b"Company", b"Creator", b"Keywords", b"Producer", b"Subject", b"Title"})
_LABEL = b"MSIP_Label_"  # of Microsoft Information Protection
_ENCODINGS = ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF8, "utf-8"))


def properties(objects: bytes) -> Generator[bytes, None, bool]:
    """A line for each, UTF-8; b"" says that time goes by. Returns whether there are more. `objects`: as they stand in
    the file, or would.
    """
    told, left_bytes, end = 0, TOLD_LIMIT_BYTES, 0
    for number, at in enumerate(_begins(objects)):
        if number >= BEGINS_LIMIT or told >= TOLD_LIMIT or left_bytes <= 0:
            return True
        found = None if at is None or at < end else _PROPERTY.match(objects, at)
        if at is None:
            yield b""
        if found is None:
            continue
        end = found.end()
        if (encoding := _encoding(found)) is not None:
            told += 1
            text = _value(found, left_bytes).decode(encoding, "replace").lstrip("\ufeff")
            left_bytes -= end - found.start()
            yield found[1] + b": " + text.encode("utf-8", "replace") + b"\n"
    return left_bytes < 0


def _begins(objects: bytes) -> Iterator[int | None]:
    """Where one may begin; None: time goes by."""
    for at in range(0, len(objects), PIECE_BYTES):
        yield None
        for found in _BEGIN.finditer(objects, at, at + PIECE_BYTES + _BEGIN_LIMIT_BYTES):
            if found.start() < at + PIECE_BYTES:
                yield found.start()


def _encoding(found: re.Match[bytes]) -> str | None:
    """By its mark; None: it is none of those that are told."""
    _, written, digits = found.groups()
    if written is None:
        begin = _from_hex(digits)
    else:
        begin = literal(_CONTINUED.sub(b"", written[:PIECE_BYTES])[:_MARK_LIMIT_BYTES])
    told = found[1] in _USUAL or found[1].startswith(_LABEL)
    return next((encoding for mark, encoding in _ENCODINGS if begin.startswith(mark)), "latin-1" if told else None)


def _value(found: re.Match[bytes], limit_bytes: int) -> bytes:
    _, written, digits = found.groups()
    return _from_hex(digits[:limit_bytes]) if written is None else literal(written[:limit_bytes])


def _from_hex(digits: bytes) -> bytes:
    packed = b"".join(digits.split())
    return bytes.fromhex((packed + b"0" * (len(packed) % 2)).decode())
