"""Mail in a file or body: whether something is one, and its parts (mitmsec.core.mime_parts) as those of a container."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mitmsec.core import body_parts
from mitmsec.core.body_parts import Opened
from mitmsec.core.mime_parts import HEAD_LIMIT_BYTES, MimeParts
from mitmsec_addons.containers import Entry, Event, Reader

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_MAIL_FIELDS = re.compile(
    rb"^(?:from|to|subject|date|received|return-path|delivered-to|mime-version|message-id|content-type)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_FIELDS_ALONE = re.compile(rb"(?:(?:[!-9;-~]+[ \t]*:|[ \t])[^\n]*\n)*[^\n]*\Z")


def begins_mail(head: bytes) -> bool:
    """Whether these are the first fields of a mail: two at least that mails have, and nothing else before them."""
    return _FIELD.match(head) is not None and len(_MAIL_FIELDS.findall(head)) >= 2


def may_begin_mail(head: bytes) -> bool:
    """Whether there is nothing but fields in it, which may be those of a mail that has longer ones before."""
    return _FIELD.match(head) is not None and _FIELDS_ALONE.match(head) is not None


class LateMailReader:
    """A mail, if its fields say so when all of them are there; what is none goes to `other`."""

    def __init__(self, other: Reader) -> None:
        self._held: bytes | None = b""
        self._reader = other

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        if self._held is not None:
            self._held += data
            if len(self._held) <= HEAD_LIMIT_BYTES and may_begin_mail(self._held):
                return
            data = self._decide()
        yield from self._reader.feed(data)

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
        if self._held is not None:
            yield from self._reader.feed(self._decide())
        yield from self._reader.close()

    def _decide(self) -> bytes:
        held, self._held = self._held or b"", None
        fields = re.split(rb"\r?\n\r?\n", held[: HEAD_LIMIT_BYTES + 1], maxsplit=1)[0]
        if begins_mail(fields):
            self._reader = MailReader()
        return held


class MailReader:
    """One mail. What stands around its parts is not told: it stands there in the clear."""

    def __init__(self) -> None:
        self._parts = MimeParts()
        self._is_open = False  # a part of the mail's is being told

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        yield from self._told(self._parts.feed(data))

    def close(self) -> Iterator[Event]:
        """The last line, which need have no end, and whether parts are missing."""
        yield from self._told(self._parts.close())

    def _told(self, events: Iterable[body_parts.Event]) -> Iterator[Event]:
        for event in events:
            match event:
                case Opened():
                    self._is_open = not event.is_aside
                    if self._is_open:
                        yield Entry(event.file_name or event.name, content_type=event.content_type)
                case bytes():
                    if self._is_open and event:
                        yield event
                case _:
                    yield event
