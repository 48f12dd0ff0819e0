"""The inspector `documents`: the text of documents is shown to the other inspectors of the rule, and what lies in them.

Word, Excel, PowerPoint, OpenDocument, EPUB   PDF   mail ──► text, attachments ──► every inspector of the rule
encrypted ones, those of before 2007 (OLE)                      ──► not inspected, and said to be so
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mitmsec.core.inspection import Part
from mitmsec_addons import file_kinds
from mitmsec_addons.containers import Reader
from mitmsec_addons.embedded_zip import EmbeddedZipReader
from mitmsec_addons.mail_reader import LateMailReader, MailReader, begins_mail, may_begin_mail
from mitmsec_addons.office_reader import OfficeReader
from mitmsec_addons.pdf_reader import PdfReader
from mitmsec_addons.unpacking import UnpackingInspector
from mitmsec_addons.unread_reader import UnreadReader
from mitmsec_addons.zip_reader import begins_office_file

ARCHIVES = "archives"
PDF_BEGINS = b"%PDF-"


class Documents(UnpackingInspector):
    """Reads, and finds nothing itself."""

    name = "documents"

    def __init__(self, words: tuple[str, ...] = (), clock: Callable[[], float] = time.process_time) -> None:
        super().__init__(words, clock)

    def choose(self, head: bytes, part: Part, names: frozenset[str]) -> Reader | None:
        """A reader for documents."""
        kind = file_kinds.recognised(head)
        if kind is file_kinds.ZIP:
            return OfficeReader(whole=begins_office_file(head))
        if kind is file_kinds.OLE:
            return UnreadReader(f"{kind.name}, which is not read")
        is_mail = part.content_type.lower().startswith("message/rfc822") or begins_mail(head)
        if is_mail and kind is None:
            return MailReader()
        if PDF_BEGINS in head and (kind is None or kind.family is not file_kinds.Family.ARCHIVE):
            return PdfReader()  # readers take it anywhere in the first 1,024 bytes
        embedded = EmbeddedZipReader(lambda at: OfficeReader(whole=False, at=at), tells=ARCHIVES not in names)
        return LateMailReader(embedded) if kind is None and may_begin_mail(head) else embedded
