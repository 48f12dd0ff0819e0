"""<starttls/> of XMPP (RFC 6120 §5): tags of the stream's first words, and no other XML.

    client  <?xml?> <stream:stream> ──────────────────────── <starttls/>
    server                           <stream:stream> features            <proceed/> │ <failure/>

Whoever says anything else first, wants no TLS; a stanza of another kind ends the search.
"""

from __future__ import annotations

import re

from mitmsec.core.clienthello import Malformed
from mitmsec.core.upgrade_step import NO_ANSWER, NOT_ASKED, Recogniser, Step

TAGS_LIMIT_BYTES = 2048  # of one tag, or of an element
_NAME = rb"(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)"
_INSIDE = rb"""(?:[^<>"'/]|"[^"<]*"|'[^'<]*'|/(?!>))*"""
_TAG = re.compile(rb"\s*<[?/]?%b%b[?/]?>" % (_NAME, _INSIDE))
_ELEMENT = re.compile(rb"\s*<%b%b(?:/>|>\s*</(?:[A-Za-z_][\w.-]*:)?\1\s*>)" % (_NAME, _INSIDE))
_BEFORE = frozenset({b"xml", b"stream"})


class Xmpp(Recogniser):
    def __init__(self) -> None:
        super().__init__()
        self._words = b""  # of the client's; from the request on, of the server's

    def _sent(self, data: bytes) -> Step | Malformed:
        if not self._words and data.startswith(b"\x16"):
            return Malformed(reason=NOT_ASKED)
        words, at = self._words + data, 0
        while (tag := _TAG.match(words, at, at + TAGS_LIMIT_BYTES)) and tag[1] in _BEFORE:
            at = tag.end()
        self._words = words[at:]
        if tag is None:
            return self._lose() if self._is_full or not self._may_begin else Step.ON
        element = self._element()
        if tag[1] == b"starttls" and element is not None:
            self._words, is_last = b"", element.end() == len(self._words)
            return self._asks(is_last=is_last)
        return self._lose() if self._is_full or tag[1] != b"starttls" else Step.ON  # its end is to come

    @property
    def _is_full(self) -> bool:
        return len(self._words) > TAGS_LIMIT_BYTES

    @property
    def _may_begin(self) -> bool:
        return self._words.lstrip()[:1] in (b"", b"<")

    def _element(self) -> re.Match[bytes] | None:
        return _ELEMENT.match(self._words, 0, TAGS_LIMIT_BYTES)

    def _lose(self) -> Step:
        self._is_lost, self._words = True, b""
        return Step.ON

    def _received(self, data: bytes) -> Step | Malformed:
        if not self.is_asked:  # the offer, which does not matter
            return Step.ON
        self._words += data
        tag = _TAG.match(self._words, 0, TAGS_LIMIT_BYTES)
        if tag is None:
            return Step.ON if self._may_begin and not self._is_full else Malformed(reason=NO_ANSWER)
        if tag[1] in (b"failure", b"error", b"stream"):  # the last: the stream's end
            self.is_asked = False
            return self._lose()
        element = self._element()
        if tag[1] != b"proceed" or (element is None and self._is_full):
            return Malformed(reason=NO_ANSWER)
        return Step.ON if element is None else self._consents(is_last=element.end() == len(self._words))
