"""TLS that is asked for where a dialogue is packets: PostgreSQL, MySQL, LDAP.

PostgreSQL  SSLRequest ──► S: consent │ N: refusal │ E: an error message
MySQL       SSLRequest ──► nothing: the hello follows at once
LDAP        an extended request of StartTLS's name (RFC 4511 §4.14) ──► its response, success: consent
"""

from __future__ import annotations

from mitmsec.core.ber import header
from mitmsec.core.clienthello import Malformed
from mitmsec.core.upgrade_step import NO_ANSWER, NOT_ASKED, Recogniser, Step


class PostgreSql(Recogniser):
    """https://www.postgresql.org/docs/current/protocol-flow.html, "SSL Session Encryption" and "GSSAPI"."""

    _PACKET_BYTES = 8
    _LENGTHS = range(8, 10_001)  # of a first packet; servers take no longer one
    _SSL, _GSS = 80877103, 80877104

    def __init__(self) -> None:
        super().__init__()
        self._packet = b""
        self._code = 0  # what was asked for

    def _sent(self, data: bytes) -> Step | Malformed:
        self._packet += data[: self._PACKET_BYTES - len(self._packet) + 1]
        if len(self._packet) < self._PACKET_BYTES:
            return Step.ON
        packet, self._packet = self._packet, b""
        length, self._code = int.from_bytes(packet[:4]), int.from_bytes(packet[4:8])
        if length not in self._LENGTHS:
            return Malformed(reason=NOT_ASKED)
        if self._code in (self._SSL, self._GSS):
            return self._asks(is_last=len(packet) == self._PACKET_BYTES)
        self._is_over = True  # a session, or the end of one, in plaintext
        return Step.ON

    def _received(self, data: bytes) -> Step | Malformed:
        answer, is_last = data[:1], len(data) == 1
        if not self.is_asked:  # servers are silent until then, but for an error
            self._is_lost = True
        elif answer == b"S" and self._code == self._SSL:
            return self._consents(is_last=is_last)
        elif answer == b"N":
            self.is_asked = False
            return Step.ON if is_last else Malformed(reason=NO_ANSWER)
        elif answer == b"E" or (answer == b"G" and self._code == self._GSS):  # Kerberos' own encryption is no TLS
            self.is_asked, self._is_lost = False, True
        else:
            return Malformed(reason=NO_ANSWER)
        return Step.ON


class MySql(Recogniser):
    """MySQL and MariaDB. https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase.html"""

    _HEADER_BYTES = 4  # length, low byte first; number of the packet
    _REQUEST_BYTES = 32
    _FLAGS_BYTES = 2
    _SSL = 0x0800

    def __init__(self) -> None:
        super().__init__()
        self._packet = b""
        self.reads_bytes = self._HEADER_BYTES

    def _sent(self, data: bytes) -> Step | Malformed:
        """Only the client's first packet can be it. No more of it is wanted than tells."""
        self._packet += data[: self._HEADER_BYTES + self._REQUEST_BYTES + 1 - len(self._packet)]
        wanted = self._HEADER_BYTES
        if len(self._packet) >= wanted:
            length = int.from_bytes(self._packet[:3], "little")
            if self._packet[3] != 1 or length < self._FLAGS_BYTES:
                return Malformed(reason=NOT_ASKED)
            wanted += length if length == self._REQUEST_BYTES else self._FLAGS_BYTES
        if len(self._packet) < wanted:
            self.reads_bytes = wanted - len(self._packet)
            return Step.ON
        return self._told()

    def _told(self) -> Step | Malformed:
        """Where the flag is set, servers expect a hello, whatever else is in the packet."""
        self.reads_bytes, size_bytes = None, len(self._packet)
        flags = int.from_bytes(self._packet[self._HEADER_BYTES :][: self._FLAGS_BYTES], "little")
        if not flags & self._SSL:
            self._is_over = True
            return Step.ON
        if self._packet[0] != self._REQUEST_BYTES or self._packet[1:3] != b"\0\0":
            return Malformed(reason=NOT_ASKED)
        return self._consents(is_last=size_bytes == self._HEADER_BYTES + self._REQUEST_BYTES)

    def _received(self, data: bytes) -> Step | Malformed:
        del data  # a server's greeting; what it offers does not matter, its consent is not asked
        return Step.ON


class _Messages:
    """The messages of one direction, by their frames: what each begins with, and whether it was the last of a piece."""

    KEPT_BYTES = 96
    _HEADER_BYTES = 6

    def __init__(self) -> None:
        self._begun = b""
        self._left_bytes = 0
        self.is_broken = False
        """What comes is no LDAP any more: a security layer, for example."""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Those that are complete with `data`, a bounded part of each."""
        complete, at = [], 0
        while at < len(data) and not self.is_broken:
            if not self._left_bytes:
                at = self._begin(data, at)
                continue
            taken = min(self._left_bytes, len(data) - at)
            self._begun += data[at : at + min(taken, self.KEPT_BYTES - len(self._begun))]
            self._left_bytes, at = self._left_bytes - taken, at + taken
            if not self._left_bytes:
                complete.append((self._begun, at == len(data)))
                self._begun = b""
        return complete

    def _begin(self, data: bytes, at: int) -> int:
        """Byte by byte: a header may come in pieces."""
        self._begun += data[at : at + 1]
        head = header(self._begun)
        if head is not None and head.tag == _SEQUENCE and head.length:
            self._left_bytes = head.length
        else:
            self.is_broken = len(self._begun) >= self._HEADER_BYTES or head is not None or self._begun[0] != _SEQUENCE
        return at + 1


_SEQUENCE, _INTEGER, _ENUMERATED = 0x30, 0x02, 0x0A
_REQUEST, _RESPONSE, _NAME = 0x77, 0x78, 0x80
_START_TLS = b"1.3.6.1.4.1.1466.20037"


class Ldap(Recogniser):
    def __init__(self) -> None:
        super().__init__()
        self._sent_ones, self._received_ones = _Messages(), _Messages()
        self._number = b""  # of the request for TLS

    def _sent(self, data: bytes) -> Step | Malformed:
        for message, is_last in self._sent_ones.feed(data):
            number, tag, inner = _parts(message)
            name = header(inner)
            if tag == _REQUEST and name is not None and name.tag == _NAME and name.of(inner) == _START_TLS:
                self._number = number
                return self._asks(is_last=is_last)
        self._is_lost = self._sent_ones.is_broken
        return Step.ON

    def _received(self, data: bytes) -> Step | Malformed:
        for message, is_last in self._received_ones.feed(data):
            number, tag, inner = _parts(message)
            if not self.is_asked or number != self._number:
                continue
            result = header(inner)
            if tag != _RESPONSE or result is None or result.tag != _ENUMERATED:
                return Malformed(reason=NO_ANSWER)
            if not any(result.of(inner)):
                return self._consents(is_last=is_last)
            self.is_asked = False
        if self._received_ones.is_broken and self.is_asked:
            return Malformed(reason=NO_ANSWER)
        self._is_lost = self._received_ones.is_broken
        return Step.ON


def _parts(message: bytes) -> tuple[bytes, int, bytes]:
    """Its number, its operation's tag, and what is inside that, as far as `message` goes; 0: it has none."""
    outer = header(message)
    inner = message[outer.size_bytes :] if outer is not None else b""
    number = header(inner)
    if number is None or number.tag != _INTEGER:
        return b"", 0, b""
    rest = inner[number.size_bytes + number.length :]
    operation = header(rest)
    if operation is None:
        return b"", 0, b""
    return number.of(inner), operation.tag, rest[operation.size_bytes :]
