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

    def _keep(self, data: bytes) -> None:
        self._words += data[: TAGS_LIMIT_BYTES + 1 - len(self._words)]

    @property
    def _is_full(self) -> bool:
        return len(self._words) > TAGS_LIMIT_BYTES

    def _sent(self, data: bytes) -> Step | Malformed:
        if not self._words and data.startswith(b"\x16"):
            return Malformed(reason=NOT_ASKED)
        self._keep(data)
        while b">" in self._words and (tag := _TAG.match(self._words)):
            if tag[1] in _BEFORE:
                self._words = self._words[tag.end() :]
                continue
            element = _ELEMENT.match(self._words)
            if element is None and tag[1] == b"starttls" and not self._is_full:
                return Step.ON  # its end is to come
            if element is None or element[1] != b"starttls":
                return self._give_up()
            is_last, self._words = element.end() == len(self._words), b""
            return self._asks(is_last=is_last)
        word = self._words.lstrip()
        return self._give_up() if self._is_full or word[:1] not in (b"", b"<") else Step.ON

    def _give_up(self) -> Step:
        self._is_over, self._words = True, b""
        return Step.ON

    def _received(self, data: bytes) -> Step | Malformed:
        if not self.is_asked:  # the offer, which does not matter
            return Step.ON
        self._keep(data)
        tag = _TAG.match(self._words) if b">" in self._words else None
        if tag is None:
            is_begun = self._words.lstrip()[:1] in (b"", b"<") and not self._is_full
            return Step.ON if is_begun else Malformed(reason=NO_ANSWER)
        if tag[1] in (b"failure", b"error", b"stream"):  # the last: the stream's end
            self.is_asked = False
            return self._give_up()
        element = _ELEMENT.match(self._words)
        if tag[1] != b"proceed" or (element is None and self._is_full):
            return Malformed(reason=NO_ANSWER)
        return Step.ON if element is None else self._consents(is_last=element.end() == len(self._words))
