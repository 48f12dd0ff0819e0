"""Blocks of a pcapng file: values in, bytes out.

    section header          who wrote this, on what
    interface description   raw IP packets, time in nanoseconds; the command that was run
    ── then, in any order ──
    name resolution         address → the host that was asked for
    process event           pid and program, counted from 0; packets point at it
    decryption secrets      NSS key log lines: must stand before the packets that they decrypt
    enhanced packet         one IP packet: time, direction, process, comment
    interface statistics    what was received and what is missing

Every block is `type · length · body · length`, every option `code · length · value`, both padded to 32 bits. All
numbers are little-endian, as the section header's magic says. The format is draft-ietf-opsawg-pcapng; the process event
block and its link from a packet (option 0x8001) are Apple's, which is what Wireshark 4.2 and later show as a packet's
process, whatever system it ran on.

Text comes from outside (paths, host names): it becomes UTF-8 whatever it holds, and is cut where a length field ends.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Sequence

LINKTYPE_RAW = 101
TLS_KEY_LOG = 0x544C534B
OPTION_LIMIT_BYTES = 0xFFFF
SECRETS_LIMIT_BYTES = 1 << 20  # of one block; readers refuse blocks beyond 16 MiB

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_NAME_RESOLUTION = 4
_INTERFACE_STATISTICS = 5
_ENHANCED_PACKET = 6
_DECRYPTION_SECRETS = 10
_PROCESS_EVENT = 0x80000001

_END_OF_OPTIONS = b"\0\0\0\0"
_COMMENT = 1
_INBOUND, _OUTBOUND = 1, 2
# Label, client random, secret (RFC 9850): whatever else stands in the bytes is not handed on to a reader's parser.
_KEY_LOG_LINE = re.compile(rb"[A-Z][A-Z0-9_]{0,63} [0-9a-fA-F]{64} (?:[0-9a-fA-F]{2}){1,128}")


def section_header(*, application: str, hardware: str = "", system: str = "", comment: str = "") -> bytes:
    """The block that a file begins with."""
    options = [(_COMMENT, comment), (2, hardware), (3, system), (4, application)]
    fixed = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)  # -1: the section's length is not told
    return _block(_SECTION_HEADER, fixed + _text_options(options))


def interface_description(*, name: str, description: str = "", link_type: int = LINKTYPE_RAW) -> bytes:
    """An interface whose packets carry nanoseconds. Interfaces are numbered in the order of their blocks, from 0."""
    nanoseconds = _option(9, b"\x09")
    fixed = struct.pack("<HHI", link_type, 0, 0)  # 0: packets are never cut
    return _block(_INTERFACE_DESCRIPTION, fixed + nanoseconds + _text_options([(2, name), (3, description)]))


def enhanced_packet(
    packet: bytes,
    *,
    time_ns: int,
    outbound: bool,
    interface: int = 0,
    process: int | None = None,
    comments: Sequence[str] = (),
) -> bytes:
    """One packet. `time_ns` counts from 1970; `process` is the number of an earlier process event block."""
    fixed = struct.pack(
        "<IIIII",
        interface,
        time_ns >> 32 & 0xFFFFFFFF,
        time_ns & 0xFFFFFFFF,
        len(packet),
        len(packet),
    )
    options = _option(2, struct.pack("<I", _OUTBOUND if outbound else _INBOUND))
    if process is not None:
        options += _option(0x8001, struct.pack("<I", process))
    texts = [(_COMMENT, comment) for comment in comments]
    return _block(_ENHANCED_PACKET, fixed + _padded(packet) + options + _text_options(texts))


def process_event(*, pid: int, name: str) -> bytes:
    """A process that packets can point at. Blocks are numbered in the order in which they stand, from 0."""
    return _block(_PROCESS_EVENT, struct.pack("<I", pid & 0xFFFFFFFF) + _text_options([(2, name)]))


def secrets(lines: bytes) -> list[bytes]:
    """Blocks with the well-formed NSS key log lines in `lines`; none where there is no such line."""
    kept = [line for line in lines.splitlines() if _KEY_LOG_LINE.fullmatch(line)]
    blocks: list[bytes] = []
    batch = b""
    for line in kept:
        if len(batch) + len(line) >= SECRETS_LIMIT_BYTES:
            blocks.append(_secrets_block(batch))
            batch = b""
        batch += line + b"\n"
    return [*blocks, _secrets_block(batch)] if batch else blocks


def _secrets_block(text: bytes) -> bytes:
    return _block(_DECRYPTION_SECRETS, struct.pack("<II", TLS_KEY_LOG, len(text)) + _padded(text))


def name_resolution(records: Iterable[tuple[str, str]]) -> bytes:
    """Pairs of address and host name. Raises ValueError for what is no address."""
    body = b""
    for address, host in records:
        ip = ipaddress.ip_address(address)
        # A record ends in NUL, so a NUL inside would begin another name.
        value = ip.packed + _encode(host.replace("\0", ""), 255) + b"\0"
        body += struct.pack("<HH", 1 if ip.version == 4 else 2, len(value)) + _padded(value)
    return _block(_NAME_RESOLUTION, body + _END_OF_OPTIONS)


def interface_statistics(
    *, time_ns: int, start_ns: int, end_ns: int, received: int, dropped: int, interface: int = 0
) -> bytes:
    """What an interface saw up to now: packets in the file, and pieces that could not be kept."""
    fixed = struct.pack("<III", interface, time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF)
    options = b"".join(
        (
            _option(2, _time(start_ns)),
            _option(3, _time(end_ns)),
            _option(4, struct.pack("<Q", received)),
            _option(5, struct.pack("<Q", dropped)),
        )
    )
    return _block(_INTERFACE_STATISTICS, fixed + options + _END_OF_OPTIONS)


def _time(time_ns: int) -> bytes:
    return struct.pack("<II", time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _text_options(options: Iterable[tuple[int, str]]) -> bytes:
    """Options that have a text, and the end of options."""
    encoded = [_option(code, _encode(text, OPTION_LIMIT_BYTES)) for code, text in options if text]
    return b"".join((*encoded, _END_OF_OPTIONS))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _encode(text: str, limit_bytes: int) -> bytes:
    """UTF-8 of `text`, cut between characters. Lone surrogates (bytes of a path that are no UTF-8) become U+FFFD."""
    data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    if len(data) <= limit_bytes:
        return data
    return data[:limit_bytes].decode(errors="ignore").encode()
