"""STARTTLS where a dialogue is lines of text: SMTP (RFC 3207), IMAP (RFC 9051 §6.2.1), POP3 (RFC 2595), FTP (RFC 4217).

    server: reply ──► the client's turn ──► its first line is looked at ──► deaf until the next reply
                                                │ STARTTLS
                                                ▼
                              nothing more of the client's until the answer ──► consent │ refusal │ something else

Only a line that begins a turn can be a request: what follows in the same turn may be a message, a literal, or a name in
base64 that spells STARTTLS. Where a server takes it for a request all the same, a hello of TLS follows: it begins a
turn, or the server's answer to it is seen (Recogniser), and the dialogue ends as malformed.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from enum import Enum, auto

from mitmsec.core.clienthello import Malformed
from mitmsec.core.upgrade_step import NO_ANSWER, NOT_ASKED, Recogniser, Step

LINE_KEPT_BYTES = 512  # of each line; a request and an answer are told by their beginning
TLS_RECORD = b"\x16"


class Says(Enum):
    """What a line of a server's means."""

    MORE = auto()  # the reply goes on, or this is none
    TURN = auto()  # it is complete
    CONTENT = auto()  # what the client says next is no command
    CONSENT = auto()  # complete, and would answer a request for TLS with yes
    OTHER = auto()  # nothing that may come between a request for TLS and its answer


class Lines(Recogniser):
    """What the four have in common. Any LF ends a line, as for most servers."""

    def __init__(self) -> None:
        super().__init__()
        self._is_turn = False  # the client's next line is one to look at
        self._is_inside = False  # of a line of the client's that is not looked at
        self._said = b""  # by the client, of the line that is
        self._reply = b""  # by the server, of its unfinished line

    def _sent(self, data: bytes) -> Step | Malformed:
        if not self._is_turn:
            self._is_inside = not data.endswith(b"\n")
            return Step.ON
        line, newline, rest = data.partition(b"\n")
        self._said += line[: LINE_KEPT_BYTES - len(self._said)]
        if self._said.startswith(TLS_RECORD):
            return Malformed(reason=NOT_ASKED)
        if not newline:
            return Step.ON
        said, self._said, self._is_turn = self._said.removesuffix(b"\r"), b"", False
        self._is_inside = not data.endswith(b"\n")
        return self._asks(is_last=not rest) if self._is_request(said) else Step.ON

    def _received(self, data: bytes) -> Step | Malformed:
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            reply = (self._reply + data[at:end])[:LINE_KEPT_BYTES].removesuffix(b"\r")
            at, self._reply = end + 1, b""
            says = self._says(reply)
            if self.is_asked:
                if says is Says.CONSENT:
                    return self._consents(is_last=at == len(data))
                if says is Says.OTHER:
                    return Malformed(reason=NO_ANSWER)
                self.is_asked = says is Says.MORE
            self._hand_over(says)
        self._reply += data[at : at + LINE_KEPT_BYTES - len(self._reply)]
        return Step.ON

    def _hand_over(self, says: Says) -> None:
        """Whose turn it is, after a line that is no answer to a request for TLS."""
        if says in (Says.TURN, Says.CONSENT):
            self._is_turn = self._is_turn or not self._is_inside
        elif says is Says.CONTENT:
            self._is_turn, self._said = False, b""

    @abstractmethod
    def _is_request(self, line: bytes) -> bool: ...

    @abstractmethod
    def _says(self, line: bytes) -> Says: ...


_CODE = re.compile(rb"([0-9]{3})(?:(-)| |$)")


class Codes(Lines):
    """Replies that begin with three digits, and end with the line that has the same ones without a hyphen."""

    CONSENT: bytes
    CONTENT: frozenset[bytes] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self._code = b""  # of a reply that goes on

    def _says(self, line: bytes) -> Says:
        match = _CODE.match(line)
        code, hyphen = match.groups() if match is not None else (b"", None)
        if self._code and (code != self._code or hyphen):
            return Says.MORE
        if hyphen:
            self._code = code
            return Says.MORE
        self._code = b""
        if not code:
            return Says.OTHER
        if code == self.CONSENT:
            return Says.CONSENT
        return Says.CONTENT if code in self.CONTENT else Says.TURN


class Smtp(Codes):
    """SMTP, submission and LMTP."""

    CONSENT = b"220"
    CONTENT = frozenset({b"334", b"354"})
    _REQUEST = re.compile(rb"[ \t]*STARTTLS(?:[ \t]|$)", re.IGNORECASE)

    def _is_request(self, line: bytes) -> bool:
        return self._REQUEST.match(line) is not None


class Ftp(Codes):
    """The control connection. Data connections are connections of their own."""

    CONSENT = b"234"
    _REQUEST = re.compile(rb"[ \t]*AUTH(?:[ \t]|$)", re.IGNORECASE)

    def _is_request(self, line: bytes) -> bool:
        """Whatever is to be agreed to: other mechanisms than TLS go on with 334 or 335 (RFC 2228)."""
        return self._REQUEST.match(line) is not None


class Pop3(Lines):
    _REQUEST = re.compile(rb"[ \t]*STLS(?:[ \t]|$)", re.IGNORECASE)

    def _is_request(self, line: bytes) -> bool:
        return self._REQUEST.match(line) is not None

    def _says(self, line: bytes) -> Says:
        if line.startswith(b"+OK"):
            return Says.CONSENT
        if line.startswith(b"-ERR"):
            return Says.TURN
        return Says.CONTENT if line.startswith(b"+ ") else Says.OTHER


class Imap(Lines):
    _REQUEST = re.compile(rb"([^\x00-\x20(){%*\"\\+]{1,64}) +STARTTLS(?:[ \t]|$)", re.IGNORECASE)
    _TAGGED = re.compile(rb"([^\x00-\x20(){%*\"\\+]{1,64}) (OK|NO|BAD)(?: |$)", re.IGNORECASE)

    def __init__(self) -> None:
        super().__init__()
        self._has_greeted = False
        self._tag = b""  # of the request for TLS

    def _is_request(self, line: bytes) -> bool:
        match = self._REQUEST.match(line)
        if match is not None:
            self._tag = match[1]
        return match is not None

    def _says(self, line: bytes) -> Says:
        if line.startswith(b"* "):
            return self._untagged(line)
        if line.startswith(b"+"):
            return Says.CONTENT
        match = self._TAGGED.match(line)
        if match is None or (self.is_asked and match[1] != self._tag):
            return Says.OTHER
        return Says.CONSENT if match[2].upper() == b"OK" else Says.TURN

    def _untagged(self, line: bytes) -> Says:
        """A greeting begins a turn. A literal behind a request for TLS could hold what looks like its answer."""
        if self.is_asked:
            return Says.OTHER if line.endswith(b"}") or len(line) >= LINE_KEPT_BYTES - 1 else Says.MORE
        has_greeted, self._has_greeted = self._has_greeted, True
        return Says.MORE if has_greeted else Says.TURN
