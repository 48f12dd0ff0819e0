"""Tunnels through a proxy: what a client says to be led on, and the proxy's consent (see mitmsec.core.upgrade).

HTTP     CONNECT host:port ──► 2xx: there is a tunnel │ 407 and others: the client may ask again
SOCKS 4  the request ──► 5A: there is one
SOCKS 5  methods ──► method ──► (user and password ──► fine) ──► the request ──► 00: there is one

What comes then is a connection like any other, and its server may be the first to speak: behind the consent it may say
what it likes. A client that goes on before it has heard the consent is Malformed: what it says would be taken for a
part of the request.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from mitmsec.core.clienthello import Malformed
from mitmsec.core.httphead import HEAD_LIMIT_BYTES
from mitmsec.core.upgrade_step import NO_ANSWER, Recogniser, Step

SOCKS_LIMIT_BYTES = 2048  # of what one side says; everything at its longest is half of it
_BLANK = re.compile(rb"\n\r?\n")
_BLANK_BYTES = 3
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9])[0-9]{2}[ \r\n]")
_STATUS_BYTES = len(b"HTTP/1.1 200 ")
_TARGET = re.compile(rb"CONNECT +([^ \r\n]*)")
_PORT = re.compile(rb":([0-9]{1,5})\Z")
ANOTHER = "the client asks the proxy for something else than what was decided"


class Connect(Recogniser):
    """RFC 9110 §9.3.6. Whom the first request names was decided; a client that was told no may ask for that again, and
    for nothing else: nobody would have been asked about it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._head = self._answer = self._target = b""

    def _sent(self, data: bytes) -> Step | Malformed:
        before = len(self._head)
        self._head = (self._head + data[: HEAD_LIMIT_BYTES + 1 - before]).lstrip(b"\r\n")
        blank = _BLANK.search(self._head, max(0, before - _BLANK_BYTES))
        if blank is None and len(self._head) <= HEAD_LIMIT_BYTES:
            return Step.ON
        connect = _TARGET.match(self._head) if blank is not None else None
        target = connect[1] if connect is not None else b""
        is_last = blank is not None and blank.end() == len(self._head)
        self._head = b""
        if self._target and target != self._target:
            return Malformed(reason=ANOTHER)
        if not target:
            self._is_lost = True  # a request that the proxy answers itself
            return Step.ON
        self._target = target
        port = _PORT.search(target)
        self.port = int(port[1]) if port is not None else 0
        return self._asks(is_last=is_last)

    def _received(self, data: bytes) -> Step | Malformed:
        """An answer to what was not asked is not looked at: the rest of a page that says why there is no tunnel."""
        if not self.is_asked:
            return Step.ON
        looked_at = max(0, len(self._answer) - _BLANK_BYTES)
        self._answer += data[: HEAD_LIMIT_BYTES + 1 - len(self._answer)]
        while True:
            status = _STATUS.match(self._answer)
            if status is None:
                return Step.ON if len(self._answer) < _STATUS_BYTES else Malformed(reason=NO_ANSWER)
            blank = _BLANK.search(self._answer, looked_at)
            if blank is None:
                return Step.ON if len(self._answer) <= HEAD_LIMIT_BYTES else Malformed(reason=NO_ANSWER)
            self._answer, looked_at = self._answer[blank.end() :], 0
            if status[1] != b"1":  # interim: another one follows
                break
        self._answer = b""
        if status[1] == b"2":
            return self._consents(is_last=True)
        self.is_asked = False
        return Step.ON


class _Turn(Enum):
    """Whose message comes next, and which."""

    REQUEST_4 = auto()
    REPLY_4 = auto()
    METHODS = auto()
    METHOD = auto()
    PASSWORD = auto()
    STATUS = auto()
    REQUEST = auto()
    REPLY = auto()


_OF_CLIENT = frozenset({_Turn.REQUEST_4, _Turn.METHODS, _Turn.PASSWORD, _Turn.REQUEST})
_CONNECT, _GRANTED_4 = 1, 0x5A
_NEXT_BY_METHOD = {0: _Turn.REQUEST, 2: _Turn.PASSWORD}
_ADDRESS_BYTES = {1: 4, 4: 16}


class Socks(Recogniser):
    """SOCKS 4, 4A, 5 (RFC 1928, RFC 1929). What is wrapped (GSS-API) or is no tunnel (BIND, UDP) is lost sight of."""

    def __init__(self) -> None:
        super().__init__()
        self._said = self._heard = b""
        self._turn = _Turn.METHODS

    def _sent(self, data: bytes) -> Step | Malformed:
        if not self._said and data[0] == 4:
            self._turn = _Turn.REQUEST_4
        self._said += data[: SOCKS_LIMIT_BYTES + 1 - len(self._said)]
        return self._go_on()

    def _received(self, data: bytes) -> Step | Malformed:
        self._heard += data[: SOCKS_LIMIT_BYTES + 1 - len(self._heard)]
        return self._go_on()

    def _go_on(self) -> Step | Malformed:
        """With every message that is there as a whole."""
        while not self._is_lost:
            is_client = self._turn in _OF_CLIENT
            data = self._said if is_client else self._heard
            size_bytes = _size_bytes(self._turn, data)
            if size_bytes is None or len(data) < size_bytes:
                return Step.ON if len(data) <= SOCKS_LIMIT_BYTES else self._lose()
            if is_client:
                self._said = data[size_bytes:]
            else:
                self._heard = data[size_bytes:]
            step = self._took(data[:size_bytes])
            if step is not None:
                return step
        return Step.ON

    def _took(self, message: bytes) -> Step | Malformed | None:
        """None: there is more to be told."""
        match self._turn:
            case _Turn.METHODS:
                self._turn = _Turn.METHOD
            case _Turn.METHOD if message[1] in _NEXT_BY_METHOD:
                self._turn = _NEXT_BY_METHOD[message[1]]
            case _Turn.PASSWORD:
                self._turn = _Turn.STATUS
            case _Turn.STATUS if message[1] == 0:
                self._turn = _Turn.REQUEST
            case _Turn.REQUEST | _Turn.REQUEST_4 if message[1] == _CONNECT:
                is_5 = self._turn is _Turn.REQUEST
                self.port = int.from_bytes(message[-2:] if is_5 else message[2:4])
                self._turn = _Turn.REPLY if is_5 else _Turn.REPLY_4
                asked = self._asks(is_last=not self._said)
                return asked if isinstance(asked, Malformed) else None
            case _Turn.REPLY if message[:2] == b"\x05\x00":
                return self._consents(is_last=True)
            case _Turn.REPLY_4 if message[0] == 0 and message[1] == _GRANTED_4:
                return self._consents(is_last=True)
            case _:
                return self._lose()
        return None

    def _lose(self) -> Step:
        self.is_asked, self._is_lost, self._said, self._heard = False, True, b"", b""
        return Step.ON


def _size_bytes(turn: _Turn, data: bytes) -> int | None:
    """Of the message that `data` begins; None where it does not tell yet."""
    match turn:
        case _Turn.METHODS:
            return 2 + data[1] if len(data) > 1 else None
        case _Turn.METHOD | _Turn.STATUS:
            return 2
        case _Turn.REPLY_4:
            return 8
        case _Turn.REQUEST_4:
            return request_4_bytes(data)
        case _Turn.PASSWORD:
            name_end = 2 + data[1] if len(data) > 1 else len(data)
            return name_end + 1 + data[name_end] if len(data) > name_end else None
        case _:
            return _addressed_bytes(data)


def request_4_bytes(data: bytes) -> int | None:
    """The size of a request of SOCKS 4: up to the end of the user's name, and of the host's where there is one."""
    user_end = data.find(0, 8)
    has_host = data[4:7] == bytes(3) and data[7:8] != b"\0"
    end = data.find(0, user_end + 1) if user_end >= 0 and has_host else user_end
    return end + 1 if end >= 0 else None


def _addressed_bytes(data: bytes) -> int | None:
    """A request or a reply of SOCKS 5: an address of the kind that the fourth byte says, and a port behind it."""
    if len(data) < 5:
        return None
    return 4 + _ADDRESS_BYTES.get(data[3], 1 + data[4]) + 2
