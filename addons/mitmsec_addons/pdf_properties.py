"""Properties of a PDF (its information dictionary: ISO 32000-2, 14.3.3), as text: labels of documents stand there.

    /Title <FEFF00530065…>                   ──► Title: Se…
    /MSIP_Label_1a2b_Name (Secret\\040stuff)  ──► MSIP_Label_1a2b_Name: Secret stuff

It follows no reference: whatever dictionary has such a property. So titles of bookmarks are told as well. What stands
in the clear in the file is found there, too.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from mitmsec_addons.pdf_text import literal

_PROPERTY = re.compile(  # nothing is tried twice: `+` behind a count
    rb"/([A-Za-z][\w.+#-]{0,127}+)\s{0,16}+"
    rb"(?:\(((?:[^()\\]++|\\.|\((?:[^()\\]++|\\.){0,4096}+\)){0,4096}+)\)|<([0-9A-Fa-f\s]{4,8192}+)>)",
    re.DOTALL,
)
_USUAL = frozenset({b"Author", b"Category", b"Company", b"Creator", b"Keywords", b"Producer", b"Subject", b"Title"})
_LABEL = b"MSIP_Label_"  # of Microsoft Information Protection
_ENCODINGS = ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF8, "utf-8"))


def properties(objects: bytes) -> Iterator[bytes]:
    """A line for each, UTF-8. `objects`: as they stand in the file, or would."""
    for found in _PROPERTY.finditer(objects):
        name, written, digits = found.groups()
        value = literal(written) if written is not None else _from_hex(digits)
        encoding = next((encoding for mark, encoding in _ENCODINGS if value.startswith(mark)), None)
        if encoding is None and not (name in _USUAL or name.startswith(_LABEL)):
            continue
        text = value.decode(encoding or "latin-1", "replace").lstrip("\ufeff")
        yield name + b": " + text.encode("utf-8", "replace") + b"\n"


def _from_hex(digits: bytes) -> bytes:
    packed = b"".join(digits.split())
    return bytes.fromhex((packed + b"0" * (len(packed) % 2)).decode())
