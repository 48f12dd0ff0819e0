"""What HTTPS and SVCB records of a DNS answer offer a program, taken out where the policy says so (RFC 9460).

    type 65 │ class │ ttl │ length │ priority │ target │ key length value │ key length value │ …   keys ascend
                                                           1 = alpn           5 = ech
    h3     an alpn of HTTP/3 becomes one that is nobody's (RFC 8701): a program does not try what it cannot have
    ech    the key becomes one for private use, behind the others: a program that does not know it passes it over

Nothing grows, shrinks or moves outside of such a record, so no name that is compressed comes to point elsewhere. Where
`ech` stands among the keys that a program has to know (`mandatory`), it is renamed there, too: the record is then for
nobody, as its owner wants it to be where there is no ECH.

Bytes of anybody: what is no answer, or not one in all of its records, what is signed (DNSSEC, TSIG), and what is longer
than any answer about services stays as it is. No byte of a message is looked at twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mitmsec.core.dns_frames import MESSAGE_LIMIT_BYTES
from mitmsec.core.model import Value

HTTPS, SVCB, OPT = 65, 64, 41
SIGNATURES = frozenset({24, 46, 250})  # SIG, RRSIG, TSIG
IN = 1
MANDATORY, ALPN, ECH = 0, 1, 5
PRIVATE_KEYS = range(65280, 65535)  # RFC 9460 §14.3.2
NOBODYS_ALPN = b"\x0a\x0a"  # GREASE (RFC 8701 §2): never anybody's, and as long as "h3"
LABELS_LIMIT = 128  # of a name; 255 bytes hold no more

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_PAIR = struct.Struct("!HH")
_OF_HTTPS, _OF_SVCB = _PAIR.pack(HTTPS, IN), _PAIR.pack(SVCB, IN)
_RESPONSE, _OPCODE, _AUTHENTIC = 0x8000, 0x7800, 0x0020
_DO = 0x8000  # of the flags of OPT, RFC 3225: who asks so verifies signatures


class Offers(Value, frozen=True):
    """What records may offer programs."""

    ech: bool = True
    h3: bool = True


class _Place(Value, frozen=True):
    """A record: its type, its flags in OPT, and where its data is."""

    kind: int
    of: int
    ttl: int
    start: int
    end: int


class _Parameter(Value, frozen=True):
    key: int
    value: bytes


def asks_for_offers(message: bytes) -> bool:
    """Whether a query is for such records."""
    try:
        _, flags, questions, *_ = _unpacked(_HEADER, message, 0)
        kind, _ = _unpacked(_PAIR, message, _past_name(message, _HEADER.size))
    except _Other:
        return False
    return questions == 1 and not flags & (_RESPONSE | _OPCODE) and kind in (HTTPS, SVCB)


def limited(message: bytes, offers: Offers) -> bytes:
    """`message` with no more in it than `offers`; itself where that changes nothing. As long as it was. Never raises.

    What is changed has no AD flag (RFC 4035 §3.2.3): nobody has verified it as it stands.
    """
    if (offers.ech and offers.h3) or not _may_have_offers(message):
        return message
    try:
        places = [*_records(message)]
    except _Other:
        return message
    if any(map(_is_signed, places)):
        return message
    changed = bytearray(message)
    for place in places:
        if place.kind in (HTTPS, SVCB) and place.of == IN:
            changed[place.start : place.end] = _record_limited(message[place.start : place.end], offers)
    if changed == message:
        return message
    flags = int.from_bytes(changed[2:4], "big") & ~_AUTHENTIC
    changed[2:4] = flags.to_bytes(2, "big")
    return bytes(changed)


def _may_have_offers(message: bytes) -> bool:
    """Nearly no message has any, and this is quick."""
    return len(message) <= MESSAGE_LIMIT_BYTES and (_OF_HTTPS in message or _OF_SVCB in message)


class _Other(Exception):
    """Not what is looked for here."""


def _unpacked(what: struct.Struct, data: bytes, at: int) -> tuple[int, ...]:
    if len(data) < at + what.size:
        raise _Other
    return what.unpack_from(data, at)


# --- the message ------------------------------------------------------------------------------------------------------
def _records(message: bytes) -> Iterator[_Place]:
    """All of a response. Raises _Other for anything else."""
    _, flags, questions, *counts = _unpacked(_HEADER, message, 0)
    if not flags & _RESPONSE or flags & _OPCODE:
        raise _Other
    at = _HEADER.size
    for _ in range(questions):
        at = _past_name(message, at) + _PAIR.size
    for _ in range(sum(counts)):
        at = _past_name(message, at)
        kind, of, ttl, length = _unpacked(_RECORD, message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise _Other
        yield _Place(kind=kind, of=of, ttl=ttl, start=at, end=at + length)
        at += length


def _past_name(data: bytes, at: int) -> int:
    """Where what follows a name begins; where it points to is nobody's business here."""
    for _ in range(LABELS_LIMIT):
        if at >= len(data):
            break
        length = data[at]
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += 1 + length
        if not length:
            return at
    raise _Other


def _is_signed(place: _Place) -> bool:
    return place.kind in SIGNATURES or (place.kind == OPT and bool(place.ttl & _DO))


# --- one record -------------------------------------------------------------------------------------------------------
def _record_limited(data: bytes, offers: Offers) -> bytes:
    try:
        at = _past_name(data, 2)
        parameters = [*_parameters(data, at)]
    except _Other:
        return data
    if not offers.h3:
        parameters = [_without_h3(one) if one.key == ALPN else one for one in parameters]
    if not offers.ech:
        parameters = _without_ech(parameters)
    return data[:at] + b"".join(_PAIR.pack(one.key, len(one.value)) + one.value for one in parameters)


def _parameters(data: bytes, at: int) -> Iterator[_Parameter]:
    """All of them, ascending to the end of `data`. Raises _Other."""
    last = -1
    while at < len(data):
        key, length = _unpacked(_PAIR, data, at)
        at += _PAIR.size
        if key <= last or at + length > len(data):
            raise _Other
        yield _Parameter(key=key, value=data[at : at + length])
        last, at = key, at + length


def _without_h3(alpn: _Parameter) -> _Parameter:
    """Each protocol stands behind its length (RFC 9460 §7.1.1); "h3-29" and the like were drafts."""
    value, at = bytearray(alpn.value), 0
    while at < len(value):
        name = slice(at + 1, at + 1 + value[at])
        if value[name] == b"h3" or value[name].startswith(b"h3-"):
            value[at + 1 : at + 3] = NOBODYS_ALPN
        at = name.stop
    return _Parameter(key=ALPN, value=bytes(value)) if at == len(value) else alpn


def _without_ech(parameters: list[_Parameter]) -> list[_Parameter]:
    """Under another key; in their order. Where all of those are taken, which no sane record does, as they are."""
    taken = {one.key for one in parameters}
    free = next((key for key in reversed(PRIVATE_KEYS) if key not in taken), None)
    if ECH not in taken or free is None:
        return parameters
    renamed = [_Parameter(key=free, value=one.value) if one.key == ECH else _needed(one, free) for one in parameters]
    return sorted(renamed, key=lambda one: one.key)


def _needed(one: _Parameter, free: int) -> _Parameter:
    """`one`, or what takes the place of a list of keys with ECH among them (RFC 9460 §8)."""
    if one.key != MANDATORY or len(one.value) % 2:
        return one
    keys = [free if key == ECH else key for (key,) in struct.iter_unpack("!H", one.value)]
    return _Parameter(key=MANDATORY, value=struct.pack(f"!{len(keys)}H", *sorted(keys)))
