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
from mitmsec_addons.inflating import (
    Zstandard,
    begins_lzma,
    begins_skippable,
    begins_zlib,
    bzipped,
    gzipped,
    xzipped,
    zlibbed,
)
from mitmsec_addons.packed_reader import PackedReader
from mitmsec_addons.seven_zip_reader import SevenZipReader
from mitmsec_addons.tar_reader import TarReader, begins_tar
from mitmsec_addons.unpacking import UnpackingInspector
from mitmsec_addons.unread_reader import UnreadReader
from mitmsec_addons.zip_reader import ZipReader, begins_office_file

DOCUMENTS = "documents"
_PACKED = {file_kinds.GZIP: gzipped, file_kinds.BZIP2: bzipped, file_kinds.XZ: xzipped, file_kinds.ZSTANDARD: Zstandard}
_BY_TRIAL = ((begins_skippable, Zstandard), (begins_lzma, xzipped), (begins_zlib, zlibbed))
_UNREAD_BEGINS = {b"\x1f\x9d": "compress", b"\x04\x22\x4d\x18": "LZ4", b"LZIP": "lzip"}
GRPC_WEB_TEXT = "application/grpc-web-text"
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
        if begins_tar(head):
            return TarReader()
        if part.content_type.lower().startswith(GRPC_WEB_TEXT):
            return UnreadReader("gRPC-Web in base64, which is not read")
        if kind is file_kinds.ZIP:
            return None if leaves_documents and begins_office_file(head) else ZipReader()
        if kind is file_kinds.SEVEN_ZIP:
            return SevenZipReader()
        if kind is file_kinds.TAR:
            return TarReader()
        if kind in _PACKED:
            return PackedReader(_PACKED[kind], part.file_name or part.name)
        if begin := next((begin for begins, begin in _BY_TRIAL if kind is None and begins(head)), None):
            return PackedReader(begin, part.file_name or part.name)
        if name := next((name for begins, name in _UNREAD_BEGINS.items() if head.startswith(begins)), ""):
            return UnreadReader(f"{name}, which is not unpacked")
        if kind is not None and kind in _UNREAD:
            return UnreadReader(f"{kind.name}, which is not unpacked")
        return EmbeddedZipReader()
