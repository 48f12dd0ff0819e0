"""The inspector `archives`: what lies in archives is shown to the other inspectors of the rule, as it goes by.

    ZIP   7z   gzip   bzip2   xz   Zstandard   tar                ──► each file in them ──► every inspector of the rule
    anything else, with a ZIP archive behind it                   ──► likewise
    RAR   cabinets                                                ──► not inspected, and said to be so

ZIP archives that are Office documents are left to `documents`, where that is in the rule, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mitmsec.core.inspection import Part
from mitmsec_addons import file_kinds
from mitmsec_addons.containers import Reader
from mitmsec_addons.embedded_zip import EmbeddedZipReader
from mitmsec_addons.inflating import Zstandard, bzipped, gzipped, xzipped
from mitmsec_addons.packed_reader import PackedReader
from mitmsec_addons.seven_zip_reader import SevenZipReader
from mitmsec_addons.tar_reader import TarReader
from mitmsec_addons.unpacking import UnpackingInspector
from mitmsec_addons.unread_reader import UnreadReader
from mitmsec_addons.zip_reader import ZipReader, begins_office_file

DOCUMENTS = "documents"
_PACKED = {file_kinds.GZIP: gzipped, file_kinds.BZIP2: bzipped, file_kinds.XZ: xzipped, file_kinds.ZSTANDARD: Zstandard}
_UNREAD = (file_kinds.RAR, file_kinds.CABINET)


class Archives(UnpackingInspector):
    """Unpacks, and finds nothing itself."""

    name = "archives"

    def __init__(self, words: tuple[str, ...] = (), clock: Callable[[], float] = time.process_time) -> None:
        super().__init__(words, clock)

    def choose(self, head: bytes, part: Part, names: frozenset[str]) -> Reader | None:
        """A reader for archives."""
        leaves_documents = DOCUMENTS in names
        kind = file_kinds.recognised(head)
        if kind is file_kinds.ZIP:
            return None if leaves_documents and begins_office_file(head) else ZipReader()
        if kind is file_kinds.SEVEN_ZIP:
            return SevenZipReader()
        if kind is file_kinds.TAR:
            return TarReader()
        if kind in _PACKED:
            return PackedReader(_PACKED[kind], part.file_name or part.name)
        if kind is not None and kind in _UNREAD:
            return UnreadReader(f"{kind.name}, which is not unpacked")
        return EmbeddedZipReader()
