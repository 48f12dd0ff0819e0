"""WebSocket frames (RFC 6455) read beside the traffic: what travels is relayed as it came, this is a copy to look at.

Payloads come out in order and in pieces, unmasked and inflated (permessage-deflate, RFC 7692), so that no message is
ever held as a whole. Three outcomes: pieces, nothing yet, `BadFrames`. The end of a message is told: what stands at
its end is certain then, and not only with the next message.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from mitmsec.engine.content import FREE_BYTES, RATIO_LIMIT, SLICE_BYTES

_CONTINUATION, _TEXT, _BINARY = 0, 1, 2
_CONTROL_LIMIT_BYTES = 125
_TAIL = b"\x00\x00\xff\xff"
_EMPTY_END = b"\0" + _TAIL


class BadFrames(Exception):
    """Bytes that are no WebSocket frames."""


class Frames:
    """One direction of one WebSocket connection. `deflate` when permessage-deflate was agreed."""

    def __init__(self, *, deflate: bool = False, no_context_takeover: bool = False) -> None:
        self._deflate = deflate
        self._no_takeover = no_context_takeover
        self._buffer = bytearray()
        self._left = 0  # payload bytes of the present frame that are still to come
        self._mask = b""
        self._at = 0  # position within the payload, for the mask
        self._data = self._final = self._compressed = False
        self._inflate: Any = None
        self._in_bytes = self._out_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of text and binary messages, b"" at the end of each message. Raises BadFrames."""
        self._buffer += data
        while True:
            if not self._left and not self._header():
                return
            taken = bytes(self._buffer[: self._left])
            if not taken and self._left:
                return
            del self._buffer[: len(taken)]
            self._left -= len(taken)
            plain = self._unmasked(taken)
            if self._data:
                yield from self._meant(plain)

    def _header(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        first, second = buffer[0], buffer[1]
        opcode, size, at = first & 0x0F, second & 0x7F, 2
        if opcode >= 8 and (size > _CONTROL_LIMIT_BYTES or not first & 0x80):
            raise BadFrames("a control frame that is fragmented or too long")
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < at + width:
                return False
            size, at = int.from_bytes(buffer[at : at + width]), at + width
        masked = 4 if second & 0x80 else 0
        if len(buffer) < at + masked:
            return False
        self._begin(first, opcode, size, bytes(buffer[at : at + masked]))
        del buffer[: at + masked]
        return True

    def _begin(self, first: int, opcode: int, size: int, mask: bytes) -> None:
        if size >> 63 or opcode not in (0, 1, 2, 8, 9, 10) or first & 0x30:
            raise BadFrames("a frame that RFC 6455 does not know")
        self._mask, self._at, self._left = mask, 0, size
        self._data, self._final = opcode in (_CONTINUATION, _TEXT, _BINARY), bool(first & 0x80)
        if opcode in (_TEXT, _BINARY):
            self._compressed = bool(first & 0x40)
            if self._compressed and not self._deflate:
                raise BadFrames("a compressed message that nobody agreed to")

    def _unmasked(self, data: bytes) -> bytes:
        if not self._mask or not data:
            return data
        shift = self._at % 4
        key = (self._mask[shift:] + self._mask[:shift]) * (len(data) // 4 + 1)
        self._at += len(data)
        return (int.from_bytes(data) ^ int.from_bytes(key[: len(data)])).to_bytes(len(data))

    def _meant(self, data: bytes) -> Iterator[bytes]:
        ends = self._final and not self._left
        if not self._compressed:
            if data:
                yield data
        else:
            yield from self._inflated(data + _TAIL if ends else data, ends=ends)
            if ends and self._no_takeover:
                self._inflate = None
        if ends:
            yield b""

    def _inflated(self, data: bytes, *, ends: bool) -> Iterator[bytes]:
        self._in_bytes += len(data)
        while data:
            if self._inflate is None:
                if ends and data in (_TAIL, _EMPTY_END):  # what may follow a final block, or is an empty message
                    return
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                piece = self._inflate.decompress(data, SLICE_BYTES)
            except zlib.error as error:
                raise BadFrames(str(error)) from None
            self._out_bytes += len(piece)
            if self._out_bytes > FREE_BYTES + RATIO_LIMIT * self._in_bytes:
                raise BadFrames(f"expands more than {RATIO_LIMIT} times")
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:  # more blocks may follow (RFC 7692 §7.2.3.5), and some receivers read them
                data, self._inflate = self._inflate.unused_data, None


def pair(extensions: str) -> tuple[Frames, Frames]:
    """Readers for what the client sends and what the server sends, after the response's Sec-WebSocket-Extensions."""
    words = {word.strip().partition("=")[0].strip().lower() for word in extensions.replace(",", ";").split(";")}
    deflate = "permessage-deflate" in words
    return (
        Frames(deflate=deflate, no_context_takeover="client_no_context_takeover" in words),
        Frames(deflate=deflate, no_context_takeover="server_no_context_takeover" in words),
    )
