"""What stands in a pcapng file, whoever wrote it: bytes in, in pieces of any size; packets and names out.

    section header        byte order; interfaces and processes are numbered anew
    interface             link type, unit of time
    name resolution       ──► CapturedName
    process event         pid and name, which packets point at (Apple's block, which mitmsec writes, too)
    enhanced packet       ──► CapturedPacket
    anything else         skipped

Each block has one of three outcomes: parsed; `NEED_MORE`, its end has not come yet; `Malformed`, and then nothing after
it can be told apart, so the reader stays there. draft-ietf-opsawg-pcapng. Reads what mitmsec.capture.pcapng writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from ipaddress import ip_address
from typing import Final

import msgspec

from mitmsec.core.model import Endpoint, Value

LATEST_NS = (1 << 36) * 10**9  # in 4147: what calendars and time zones can be asked about
NUMBERED_LIMIT = 65536  # interfaces, and processes, of a section
TEXT_LIMIT_BYTES = 1024  # of a name
BLOCK_LIMIT_BYTES = 16 << 20  # as Wireshark; longer ones are damage
SECTION, INTERFACE, NAMES, PACKET, PROCESS = 0x0A0D0D0A, 1, 4, 6, 0x80000001
MAGIC: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
COMMENT, FLAGS, PROCESS_INDEX = 1, 2, 0x8001
NAME, RESOLUTION, OFFSET = 2, 9, 14
INBOUND, OUTBOUND = 1, 2


class Want(Enum):
    """The outcome between parsed and malformed."""

    NEED_MORE = "need_more"


class Malformed(Value, frozen=True):
    """Not pcapng from this byte of the file on."""

    at: int
    why: str


class Block(Value, frozen=True):
    """A whole block, without its frame."""

    kind: int
    order: str  # "<" or ">"
    body: bytes
    length: int  # with its frame


class CapturedProcess(Value, frozen=True):
    """What a process event block says."""

    pid: int
    name: str


class CapturedPacket(Value, frozen=True):
    """One packet, as much of it as was captured."""

    time_ns: int  # since 1970
    link_type: int
    data: bytes
    outbound: bool | None
    process: CapturedProcess | None
    comments: tuple[str, ...]


class CapturedName(Value, frozen=True):
    """From here on this address is known by this name."""

    address: str
    host: str


class _Section(msgspec.Struct):
    interfaces: list[_Interface] = msgspec.field(default_factory=list)
    processes: list[CapturedProcess] = msgspec.field(default_factory=list)


class _Interface(Value, frozen=True):
    link_type: int
    resolution: int
    offset_s: int

    def time_ns(self, units: int) -> int:
        """Raises _Wrong."""
        power = self.resolution & 0x7F
        ns = units * 10**9 >> power if self.resolution & 0x80 else units * 10**9 // 10**power
        ns += self.offset_s * 10**9
        if not 0 <= ns <= LATEST_NS:
            raise _Wrong("a packet of no time that there is")
        return ns


def block_at(data: bytes | bytearray, at: int, order: str) -> Block | Want | str:
    """The block that begins at `at`, in the section's byte order; what is wrong with it, as text."""
    if len(data) - at < 12:
        return Want.NEED_MORE
    if data[at : at + 4] == b"\n\r\r\n":  # the same in both orders, and itself says which one follows
        magic = bytes(data[at + 8 : at + 12])
        if magic not in MAGIC:
            return "a section without byte order"
        order = MAGIC[magic]
    elif not order:
        return "no section header"
    kind, length = struct.unpack_from(f"{order}II", data, at)
    if length % 4 or not 12 <= length <= BLOCK_LIMIT_BYTES:
        return f"a block of {length} bytes"
    if at + length > len(data):
        return Want.NEED_MORE
    if data[at + length - 4 : at + length] != data[at + 4 : at + 8]:
        return "a block whose lengths differ"
    return Block(kind, order, bytes(data[at + 8 : at + length - 4]), length)


class Reader:
    """One file. After `malformed` has been set, `feed` gives nothing more."""

    def __init__(self) -> None:
        self.malformed: Malformed | None = None
        self._data = bytearray()
        self._gone = 0  # bytes of the file before `_data`
        self._order = ""
        self._section = _Section()

    @property
    def is_inside_block(self) -> bool:
        """There are bytes of a block whose end has not come: a file that ends here has been cut off."""
        return self.malformed is None and bool(self._data)

    def feed(self, data: bytes) -> list[CapturedPacket | CapturedName]:
        """What `data`, the next bytes of the file, has completed."""
        self._data += data
        found: list[CapturedPacket | CapturedName] = []
        at = 0
        while self.malformed is None:
            block = block_at(self._data, at, self._order)
            if isinstance(block, Want):
                break
            try:
                if isinstance(block, str):
                    raise _Wrong(block)
                found += self._read(block)
                at += block.length
            except _Wrong as wrong:
                self.malformed = Malformed(self._gone + at, str(wrong))
        self._gone += at
        del self._data[: at if self.malformed is None else None]
        return found

    def _read(self, block: Block) -> list[CapturedPacket | CapturedName]:
        """What a block adds. Raises _Wrong."""
        match block.kind:
            case 0x0A0D0D0A:
                self._begin(block)
            case 1:
                _number_anew(self._section.interfaces, _interface(block))
            case 4:
                return list(_names(block))
            case 6:
                return [_packet(block, self._section)]
            case 0x80000001:
                _number_anew(self._section.processes, _process(block))
            case _:
                pass
        return []

    def _begin(self, block: Block) -> None:
        _, major, _ = _fixed(block, "IHH")
        if major != 1:
            raise _Wrong(f"version {major}")
        self._order, self._section = block.order, _Section()


class _Wrong(Exception):
    """What is wrong with a block."""


def _number_anew[One](known: list[One], one: One) -> None:
    if len(known) >= NUMBERED_LIMIT:
        raise _Wrong(f"a section with more than {NUMBERED_LIMIT} of a kind")
    known.append(one)


def _fixed(block: Block, shape: str) -> tuple[int, ...]:
    layout = struct.Struct(block.order + shape)
    if len(block.body) < layout.size:
        raise _Wrong("a block shorter than its fields")
    return layout.unpack_from(block.body)


def _interface(block: Block) -> _Interface:
    link_type, _, _ = _fixed(block, "HHI")
    options = dict(_options(block, 8))
    return _Interface(
        link_type=link_type,
        resolution=int.from_bytes(options.get(RESOLUTION, b"\x06")[:1]),
        offset_s=int.from_bytes(options.get(OFFSET, b"")[:8], "little" if block.order == "<" else "big", signed=True),
    )


def _process(block: Block) -> CapturedProcess:
    (pid,) = _fixed(block, "I")
    return CapturedProcess(pid, _text(dict(_options(block, 4)).get(NAME, b"")[:TEXT_LIMIT_BYTES]))


def _packet(block: Block, section: _Section) -> CapturedPacket:
    number, high, low, captured, _ = _fixed(block, "IIIII")
    if number >= len(section.interfaces):
        raise _Wrong("a packet of an unknown interface")
    if 20 + captured > len(block.body):
        raise _Wrong("a packet longer than its block")
    interface = section.interfaces[number]
    options = list(_options(block, 20 + captured + -captured % 4))
    known = dict(options)
    flags = _number(block, known.get(FLAGS)) or 0
    process = _number(block, known.get(PROCESS_INDEX))
    return CapturedPacket(
        time_ns=interface.time_ns(high << 32 | low),
        link_type=interface.link_type,
        data=block.body[20 : 20 + captured],
        outbound={INBOUND: False, OUTBOUND: True}.get(flags & 3),
        process=section.processes[process] if process is not None and process < len(section.processes) else None,
        comments=tuple(_text(value) for code, value in options if code == COMMENT),
    )


def _number(block: Block, value: bytes | None) -> int | None:
    if value is None or len(value) != 4:
        return None
    return int.from_bytes(value, "little" if block.order == "<" else "big")


def _options(block: Block, at: int) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option from there on. Like all bodies, all options end on a multiple of four bytes."""
    body = block.body
    while at < len(body):
        code, length = struct.unpack_from(f"{block.order}HH", body, at)
        if code == 0:
            return
        if at + 4 + length > len(body):
            raise _Wrong("an option longer than its block")
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4


def _names(block: Block) -> Iterator[CapturedName]:
    for kind, value in _options(block, 0):
        size = {1: 4, 2: 16}.get(kind)
        if size is None:
            continue
        host = value[size:].split(b"\0", 1)[0]
        if len(value) < size:
            raise _Wrong("a name without an address")
        yield CapturedName(Endpoint.of(str(ip_address(value[:size])), 0).address, _text(host[:TEXT_LIMIT_BYTES]))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
