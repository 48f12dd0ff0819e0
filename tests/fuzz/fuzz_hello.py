"""Fuzzed: `clienthello.parse`. Three outcomes, the last two of them final, however the bytes arrive."""

from __future__ import annotations

import msgspec

from mitmsec.core.clienthello import HELLO_LIMIT_BYTES, ClientHello, Malformed, NeedMore, parse
from mitmsec.core.names import is_address, parse_name


def attempt(data: bytes) -> None:
    """Two bytes say where the data is cut, the rest is what a client sends."""
    cut, sent = int.from_bytes(data[:2]), data[2:]
    whole, start = parse(sent), parse(sent[: cut % (len(sent) + 1)])
    _is_final(start, whole)
    match whole:
        case ClientHello():
            _is_a_hello(whole, sent)
            _comes_in_any_records(whole, cut)
            if isinstance(start, NeedMore) and start.size_bytes is not None:
                assert start.size_bytes <= len(whole.raw), "it asked for more than it took"
        case NeedMore(size_bytes=size):
            assert size is None or size > len(sent)
        case Malformed(reason=reason):
            assert reason
            assert reason.isprintable()


def _is_final(start: ClientHello | NeedMore | Malformed, whole: ClientHello | NeedMore | Malformed) -> None:
    if not isinstance(start, NeedMore):
        assert whole == start, "more bytes changed an answer"


def _is_a_hello(hello: ClientHello, sent: bytes) -> None:
    assert sent.startswith(hello.raw)
    assert len(hello.raw) <= HELLO_LIMIT_BYTES
    assert parse(hello.raw) == hello
    assert isinstance(parse(hello.raw[:-1]), NeedMore)
    assert hello.versions
    assert hello.ciphers
    assert all(hello.alpn)
    assert len(hello.ja4) == 36
    if hello.sni is not None:
        assert parse_name(hello.sni) == hello.sni
        assert not is_address(hello.sni)


def _comes_in_any_records(hello: ClientHello, cut: int) -> None:
    """The same message in two records, divided anywhere."""
    message, at = bytearray(), 0
    while at < len(hello.raw):
        size = int.from_bytes(hello.raw[at + 3 : at + 5])
        message += hello.raw[at + 5 : at + 5 + size]
        at += 5 + size
    first = 1 + cut % min(len(message), 1 << 14)
    pieces = [bytes(message[:first]), *(bytes(message[at : at + 16384]) for at in range(first, len(message), 16384))]
    anew = b"".join(b"\x16\x03\x03" + len(piece).to_bytes(2) + piece for piece in pieces)
    if len(anew) <= HELLO_LIMIT_BYTES:
        assert parse(anew) == msgspec.structs.replace(hello, raw=anew)
