"""Which protocol do a connection's first bytes speak, and for which host?

The first byte picks a branch, and each branch reads on in one direction only, so more bytes never change an answer:

    16            TLS record        ──► clienthello.parse
    letter, CR LF a line of text    ──► SSH · HTTP/2 preface · HTTP/1 request (head) · SMTP · IMAP · else tcp
    04 01, 05     SOCKS 4, 5        ──► SOCKS · else as below
    00..09        length of a query ──► DNS over TCP (by its structure; the port is not looked at) · else tcp
    00 00         length of a packet ─► PostgreSQL · else tcp
    30            BER sequence      ──► LDAP · else as a letter
    <             XML               ──► XMPP · else tcp
    anything else                   ──► tcp

A name is only ever reported when every reader would take the same one: two different Host fields, or a Host field that
some servers see and others don't, give no name and a `reason`. An IP literal is no name.
"""

from __future__ import annotations

import re
from enum import StrEnum

from msgspec.structs import replace

from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello, Malformed, NeedMore
from mitmsec.core.httphead import HEAD_LIMIT_BYTES, host_of
from mitmsec.core.model import Value
from mitmsec.core.openings import opening_of

__all__ = ["FIRST_BYTES_LIMIT", "Malformed", "NeedMore", "Protocol", "Sniffed", "first_bytes", "server_bytes"]

FIRST_BYTES_LIMIT = max(clienthello.HELLO_LIMIT_BYTES, HEAD_LIMIT_BYTES)  # no answer ever needs more
LINE_LIMIT_BYTES = 16 * 1024  # a request line; common servers stop at 8 KiB
GREETING_LIMIT_BYTES = 1024  # RFC 5321 §4.5.3.1.5 has 512


class Protocol(StrEnum):
    """What a flow turns out to be; the word that stands in events. `TCP` is anything not recognised."""

    DNS = "dns"
    FTP = "ftp"
    HTTP = "http"
    HTTP2 = "http2-cleartext"
    HTTP_PROXY = "http-proxy"
    IMAP = "imap"
    LDAP = "ldap"
    MYSQL = "mysql"
    POP3 = "pop3"
    POSTGRESQL = "postgresql"
    QUIC = "quic"
    SMTP = "smtp"
    SOCKS = "socks"
    SSH = "ssh"
    TCP = "tcp"
    TLS = "tls"
    XMPP = "xmpp"


UPGRADABLE = frozenset(
    {
        Protocol.FTP,
        Protocol.IMAP,
        Protocol.LDAP,
        Protocol.MYSQL,
        Protocol.POP3,
        Protocol.POSTGRESQL,
        Protocol.SMTP,
        Protocol.XMPP,
    }
)
"""What may begin in plaintext and go on under TLS (mitmsec.core.upgrade)."""
TUNNELS = frozenset({Protocol.HTTP_PROXY, Protocol.SOCKS})
"""What may lead through a proxy, to a connection like any other (mitmsec.core.tunnel)."""
WITH_HELLO = UPGRADABLE | {
    Protocol.QUIC,
    Protocol.TLS,
}  # in whose hello a client names a host, offers protocols, and shows what it is
WITH_NAME = WITH_HELLO | {Protocol.HTTP, Protocol.HTTP_PROXY}  # whose clients can name a host
OVER_TCP = frozenset(Protocol) - {Protocol.QUIC}
GREETED = frozenset({Protocol.FTP, Protocol.IMAP, Protocol.MYSQL, Protocol.POP3, Protocol.SMTP, Protocol.SSH})
"""What a server that speaks first can show."""


class Shown(Value, frozen=True):
    """What a flow's first bytes tell the policy. By default nothing: they are not there, or nobody looked."""

    protocol: Protocol | None = None
    name: str | None = None
    """Comparable, see mitmsec.core.names."""
    alpn: tuple[str, ...] = ()
    ja4: str | None = None
    ech: bool | None = None
    """Whether a hello has an encrypted one inside, or its GREASE; None: they are no hello."""

    @classmethod
    def of(
        cls,
        name: str | None,
        protocol: Protocol | None = None,
        alpn: tuple[str, ...] = (),
        ja4: str | None = None,
        ech: bool | None = None,
    ) -> Shown:
        """What a question tells: where it leaves the protocol open, TLS is what shows such things."""
        is_told = name is not None or alpn or ja4 is not None or ech is not None
        protocol = protocol or (Protocol.TLS if is_told else None)
        return cls(protocol=protocol, name=name, alpn=alpn, ja4=ja4, ech=bool(ech) if protocol in WITH_HELLO else None)

    @property
    def is_tls(self) -> bool:
        """Whether they are a hello, be it after a dialogue in plaintext."""
        return self.protocol is Protocol.TLS or self.ja4 is not None


NOTHING_SHOWN = Shown()


class Sniffed(Value, frozen=True):
    """What the client speaks. `hello` is there for TLS only."""

    protocol: Protocol
    name: str | None = None
    """The host the client named, comparable (mitmsec.core.names), or None."""
    hello: ClientHello | None = None
    reason: str = ""
    """Why there is no name although the protocol has a place for one."""

    @property
    def shown(self) -> Shown:
        """All of it that the policy is asked about."""
        shown = Shown(protocol=self.protocol, name=self.name)
        if self.hello is None:
            return shown
        return replace(shown, alpn=self.hello.alpn, ja4=self.hello.ja4, ech=self.hello.ech)


_TCP = Sniffed(protocol=Protocol.TCP)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 §3.4
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110 §5.6.2
_LINE_SO_FAR = re.compile(_TOKEN + rb"{1,64}(?: [^\x00-\x08\x0a-\x1f\x7f]*\r?)?")
_VERSION = re.compile(rb"HTTP/1\.[0-9]")
_SMTP_LINE = re.compile(rb"(?:EHLO|HELO|LHLO) ", re.IGNORECASE)
_IMAP_LINE = re.compile(rb"[A-Z0-9.]{1,16} (?:AUTHENTICATE|CAPABILITY|ID|LOGIN|STARTTLS)\b", re.IGNORECASE)


def first_bytes(data: bytes) -> Sniffed | NeedMore | Malformed:
    """What `data`, all that the client has sent so far, begins. Never raises, whatever the bytes.

    `Malformed` means that the bytes claim to be TLS or HTTP and break its rules; what claims neither is `tcp`.
    """
    if not data:
        return NeedMore(size_bytes=1)
    first = data[0]
    if first == 0x16:
        return _tls(data)
    opening = opening_of(data)
    if opening is not None:
        return opening if isinstance(opening, NeedMore) else Sniffed(protocol=Protocol(opening))
    if first in b"\r\n" or re.match(_TOKEN, data):
        return _text(data)
    return _dns(data) if first < 0x0A else _TCP


def _tls(data: bytes) -> Sniffed | NeedMore | Malformed:
    if data[1:2] not in (b"", b"\x03"):
        return _TCP
    hello = clienthello.parse(data)
    if not isinstance(hello, ClientHello):
        return hello
    return Sniffed(protocol=Protocol.TLS, name=hello.sni, hello=hello)


def _text(data: bytes) -> Sniffed | NeedMore | Malformed:
    if b"SSH-".startswith(data[:4]):
        return Sniffed(protocol=Protocol.SSH) if len(data) >= 4 else NeedMore()
    if _PREFACE.startswith(data[: len(_PREFACE)]):
        return Sniffed(protocol=Protocol.HTTP2) if len(data) >= len(_PREFACE) else NeedMore()
    start = len(data) - len(data.lstrip(b"\r\n"))  # empty lines before a request: RFC 9112 §2.2
    end = data.find(b"\n", start)
    if end < 0:
        so_far = data[start : start + LINE_LIMIT_BYTES + 1]
        possible = not so_far or _LINE_SO_FAR.fullmatch(so_far)
        return NeedMore() if possible and len(data) <= LINE_LIMIT_BYTES else _TCP
    line = data[start:end].removesuffix(b"\r")
    if end > LINE_LIMIT_BYTES or not _LINE_SO_FAR.fullmatch(line):
        return _TCP
    method, _, rest = line.partition(b" ")
    target, _, version = rest.strip(b" ").rpartition(b" ")  # split, not searched: linear whatever the spaces
    if not target or not _VERSION.fullmatch(version):
        return _other_line(line)
    return _http(method, target.rstrip(b" "), data, end + 1)


def _other_line(line: bytes) -> Sniffed:
    if _SMTP_LINE.match(line):
        return Sniffed(protocol=Protocol.SMTP)
    return Sniffed(protocol=Protocol.IMAP) if _IMAP_LINE.match(line) else _TCP


def _http(method: bytes, target: bytes, data: bytes, fields_at: int) -> Sniffed | NeedMore | Malformed:
    host = host_of(method, target, data, fields_at)
    if isinstance(host, NeedMore | Malformed):
        return host
    protocol = Protocol.HTTP_PROXY if host.through_proxy else Protocol.HTTP
    return Sniffed(protocol=protocol, name=host.name, reason=host.reason)


_DNS_QUERY = re.compile(  # RFC 1035 §4.1, behind the two bytes of RFC 7766 §8
    rb"""..                         # length, checked apart
         ..                         # id
         [\x00\x01].                # a standard query; recursion desired or not
         \x00\x01 \x00\x00 \x00\x00 # one question, no answer, no authority
         \x00[\x00-\x02]            # additional: EDNS, TSIG
    """,
    re.DOTALL | re.VERBOSE,
)
_DNS_HEADER_BYTES = 14
_DNS_SMALLEST_BYTES = 17  # header, root name, type, class


def _dns(data: bytes) -> Sniffed | NeedMore:
    """By length and header alone: the question's name is not the name of a host that is contacted."""
    if len(data) > 1 and int.from_bytes(data[:2]) < _DNS_SMALLEST_BYTES:
        return _TCP
    if len(data) < _DNS_HEADER_BYTES:
        return NeedMore(size_bytes=_DNS_HEADER_BYTES)
    return Sniffed(protocol=Protocol.DNS) if _DNS_QUERY.match(data) else _TCP


_GREETINGS = (
    (re.compile(rb"SSH-"), Protocol.SSH),  # RFC 4253 §4.2
    (re.compile(rb"220[ -].*SMTP", re.IGNORECASE), Protocol.SMTP),  # RFC 5321 §4.2
    (re.compile(rb"220[ -].*FTP", re.IGNORECASE), Protocol.FTP),  # RFC 959 §5.4
    (re.compile(rb"\+OK\b"), Protocol.POP3),  # RFC 1939 §4
    (re.compile(rb"\* (?:OK|PREAUTH|BYE)\b"), Protocol.IMAP),  # RFC 9051 §7.1
)
_PRINTABLE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\r?")
_MYSQL = (range(256), range(256), b"\x00\x01\x02\x03", b"\x00", b"\x0a", b"0123456789")
"""What may stand in each place: length (3 bytes, low one first, under 256 KiB), packet 0, protocol 10, a digit."""


def server_bytes(data: bytes) -> Protocol | NeedMore:
    """What a server that speaks first greets with; `Protocol.TCP` where the greeting says nothing certain.

    A 220 that names neither SMTP nor FTP stays `tcp`: both protocols begin so, and the port proves nothing.
    """
    if all(byte in allowed for byte, allowed in zip(data, _MYSQL, strict=False)):
        return Protocol.MYSQL if len(data) >= len(_MYSQL) else NeedMore(size_bytes=len(data) + 1)
    line, newline, _ = data[:GREETING_LIMIT_BYTES].partition(b"\n")
    if not _PRINTABLE.fullmatch(line):
        return Protocol.TCP
    if not newline and len(data) < GREETING_LIMIT_BYTES:
        return NeedMore()
    return next((protocol for pattern, protocol in _GREETINGS if pattern.match(line)), Protocol.TCP)
