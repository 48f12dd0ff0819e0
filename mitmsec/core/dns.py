"""DNS messages, as far as they say which addresses a name has (RFC 1035, RFC 3596, RFC 9460).

    header │ question │ answers: CNAME, CNAME, A, A …         what stands behind the answers is not looked at
              │            │
              └── its name ┴─► the chain of CNAMEs ──► addresses of A and AAAA, hints of HTTPS and SVCB

Bytes of anybody: a pointer within a name must point to before the piece that it continues, so that no name goes in
circles; a name has at most 255 bytes; a chain at most CHAIN_LIMIT names; a message that makes its reader walk over more
than LABELS_LIMIT labels and pointers is none. More bytes never change an answer.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping

from mitmsec.core.clienthello import Malformed, NeedMore
from mitmsec.core.model import Value
from mitmsec.core.names import parse_name

__all__ = ["Address", "DnsMessage", "Malformed", "NeedMore", "parse"]

A, CNAME, AAAA, SVCB, HTTPS = 1, 5, 28, 64, 65
IN = 1
CHAIN_LIMIT = 16  # names; resolvers give up at about as many
ADDRESSES_LIMIT = 64  # of one message
LABELS_LIMIT = 1024  # walked over in one message; an answer of a hundred addresses takes some hundred
NAME_LIMIT_BYTES = 255  # RFC 1035 §2.3.4
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")  # type, class, time to live, length of the data
_PAIR = struct.Struct("!HH")
_RESPONSE, _OPCODE, _TRUNCATED, _RCODE = 0x8000, 0x7800, 0x0200, 0x000F
_POINTER, _LABEL_MOST = 0xC0, 63
_IPV4_HINT, _IPV6_HINT = 4, 6


class Address(Value, frozen=True):
    """An address that an answer gives the name that was asked for."""

    address: str  # canonical text
    ttl_s: int  # the least of those on the way to it


class DnsMessage(Value, frozen=True):
    """A query or a response with one question."""

    id: int
    is_response: bool
    wire_name: bytes
    """The name of the question in lower case, as it is on the wire but uncompressed: what a response must repeat."""
    kind: int
    """The type that is asked for."""
    rcode: int = 0
    truncated: bool = False
    addresses: tuple[Address, ...] = ()

    @property
    def name(self) -> str | None:
        """The name of the question, comparable (mitmsec.core.names); None where it is no host's."""
        return parse_name(_text(self.wire_name))


class _Walk:
    """How far one message may still send its reader."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = LABELS_LIMIT

    def step(self) -> None:
        """Over one label or pointer. Raises _Broken."""
        self._left -= 1
        if self._left < 0:
            raise _Broken("names without end")


class _Short(Exception):
    """The bytes end within something."""


class _Broken(Exception):
    """The bytes cannot be a message, whatever follows."""


def parse(data: bytes) -> DnsMessage | NeedMore | Malformed:
    """`data` is a message from its header on, without the length that TCP puts before it. Never raises."""
    try:
        return _message(data)
    except _Short:
        return NeedMore(size_bytes=len(data) + 1)
    except _Broken as broken:
        return Malformed(reason=str(broken))


def _message(data: bytes) -> DnsMessage:
    number, flags, questions, answers, _, _ = _unpacked(_HEADER, data, 0)
    if flags & _OPCODE:
        raise _Broken("not a standard query")
    if questions != 1:
        raise _Broken(f"{questions} questions")
    walk = _Walk()
    name, at = _name(data, _HEADER.size, walk)
    kind, of = _unpacked(_PAIR, data, at)
    if of != IN:
        raise _Broken(f"class {of}")
    is_response = bool(flags & _RESPONSE)
    records = tuple(_records(data, at + _PAIR.size, answers, walk)) if is_response else ()
    return DnsMessage(
        id=number,
        is_response=is_response,
        wire_name=name,
        kind=kind,
        rcode=flags & _RCODE,
        truncated=bool(flags & _TRUNCATED),
        addresses=_addresses(name, records),
    )


def _unpacked(what: struct.Struct, data: bytes, at: int) -> tuple[int, ...]:
    if len(data) < at + what.size:
        raise _Short
    return what.unpack_from(data, at)


# --- names ------------------------------------------------------------------------------------------------------------
def _name(data: bytes, at: int, walk: _Walk) -> tuple[bytes, int]:
    """The name in lower case with all its labels, and where what follows it begins."""
    labels: list[bytes] = []
    size, end, start = 1, 0, at
    while True:
        walk.step()
        if at >= len(data):
            raise _Short
        length = data[at]
        if length >= _POINTER:
            if at + 1 >= len(data):
                raise _Short
            end = end or at + 2
            at = (length - _POINTER) << 8 | data[at + 1]
            if not _HEADER.size <= at < start:
                raise _Broken("a name that points forwards")
            start = at
        elif length > _LABEL_MOST:
            raise _Broken("an unknown kind of label")
        else:
            at += 1
            if not length:
                return b"".join(labels) + b"\0", end or at
            if at + length > len(data):
                raise _Short
            size += 1 + length
            if size > NAME_LIMIT_BYTES:
                raise _Broken("a name of more than 255 bytes")
            labels.append(bytes([length]) + data[at : at + length].lower())
            at += length


def _text(wire: bytes) -> str:
    """Labels with dots between them; one that holds a dot itself makes it no host's name."""
    labels, at = [], 0
    while length := wire[at]:
        labels.append(wire[at + 1 : at + 1 + length])
        at += 1 + length
    return "/" if any(b"." in label for label in labels) else b".".join(labels).decode("latin-1")


# --- answers ----------------------------------------------------------------------------------------------------------
class _Answer(Value, frozen=True):
    owner: bytes
    ttl_s: int
    alias: bytes | None = None
    addresses: tuple[bytes, ...] = ()  # as they stand there: to write one as text takes longer than all else about it


def _records(data: bytes, at: int, count: int, walk: _Walk) -> Iterator[_Answer]:
    for _ in range(count):
        owner, at = _name(data, at, walk)
        kind, of, ttl_s, length = _unpacked(_RECORD, data, at)
        at += _RECORD.size
        if at + length > len(data):
            raise _Short
        ttl_s = 0 if ttl_s >> 31 else ttl_s  # RFC 2181 §8
        if of == IN:
            yield _answer(data, at, length, kind, owner, ttl_s, walk)
        at += length


def _answer(data: bytes, at: int, length: int, kind: int, owner: bytes, ttl_s: int, walk: _Walk) -> _Answer:
    rdata = data[at : at + length]
    if kind == CNAME:
        return _Answer(owner=owner, ttl_s=ttl_s, alias=_alias(data[: at + length], at, walk))
    if (kind, length) in ((A, 4), (AAAA, 16)):
        return _Answer(owner=owner, ttl_s=ttl_s, addresses=(rdata,))
    if kind in (A, AAAA):
        raise _Broken("an address of another length")
    return _Answer(owner=owner, ttl_s=ttl_s, addresses=_hints(rdata) if kind in (SVCB, HTTPS) else ())


def _alias(data: bytes, at: int, walk: _Walk) -> bytes:
    """The name that is all that `data` has from `at` on."""
    try:
        alias, end = _name(data, at, walk)
    except _Short:
        end = -1
    if end != len(data):
        raise _Broken("an alias that is no name")
    return alias


def _address(packed: bytes) -> str:
    ip = ipaddress.ip_address(packed)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def _hints(rdata: bytes) -> tuple[bytes, ...]:
    """Addresses that a service record gives for whoever does not want to ask once more; none where it is broken."""
    at = 2
    while at < len(rdata) and 0 < rdata[at] <= _LABEL_MOST:  # its target's name is never compressed
        at += 1 + rdata[at]
    at += 1
    found: list[bytes] = []
    while at + _PAIR.size <= len(rdata):
        key, length = _PAIR.unpack_from(rdata, at)
        at += _PAIR.size
        value, size = rdata[at : at + length], {_IPV4_HINT: 4, _IPV6_HINT: 16}.get(key, 0)
        if size and len(value) == length and length % size == 0:
            found += [value[place : place + size] for place in range(0, length, size)]
        at += length
    return tuple(found)


def _addresses(name: bytes, records: tuple[_Answer, ...]) -> tuple[Address, ...]:
    """Those of the name and of what it is an alias of, in the order in which they stand."""
    aliases: Mapping[bytes, _Answer] = {one.owner: one for one in reversed(records) if one.alias is not None}
    chain = {name: 2**31 - 1}
    while (alias := aliases.get(name)) is not None and alias.alias is not None and len(chain) < CHAIN_LIMIT:
        if alias.alias in chain:
            break
        chain[alias.alias] = min(chain[name], alias.ttl_s)
        name = alias.alias
    found = (
        Address(address=_address(address), ttl_s=min(one.ttl_s, chain[one.owner]))
        for one in records
        if one.owner in chain
        for address in one.addresses
    )
    return tuple(address for address, _ in zip(found, range(ADDRESSES_LIMIT), strict=False))
