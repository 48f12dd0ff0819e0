"""DNS over TCP (RFC 1035 §4.2.2, RFC 7766): messages one after the other, each behind its length.

    length │ message │ length │ message │ …        in whatever pieces it comes, which change nothing

Bytes of anybody: what is longer than any answer about addresses is passed over, what is shorter than a header ends the
listening, for this is no DNS, and so do STREAM_LIMIT_BYTES. One direction never holds more than a message.
"""

from __future__ import annotations

MESSAGE_LIMIT_BYTES = 16_384
MESSAGE_LEAST_BYTES = 12
STREAM_LIMIT_BYTES = 1 << 18  # some two thousand answers
LENGTH_BYTES = 2


class DnsFrames:
    """One direction of a connection."""

    __slots__ = ("_held", "_is_other", "_left_bytes", "_over_bytes", "_wanted_bytes")

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted_bytes = LENGTH_BYTES  # of what is held, to be whole
        self._over_bytes = 0  # of a message that is passed over
        self._left_bytes = STREAM_LIMIT_BYTES
        self._is_other = False  # something else than DNS

    @property
    def is_over(self) -> bool:
        """Nothing more will be found."""
        return self._is_other or not self._left_bytes

    def fed(self, data: bytes) -> list[bytes]:
        """The messages that are whole with `data`, which follows on what came before; not looked at. Never raises."""
        rest = memoryview(data)[: self._left_bytes]
        self._left_bytes -= len(rest)
        found = []
        while rest and not self._is_other:
            if self._over_bytes:
                passed = min(self._over_bytes, len(rest))
                self._over_bytes, rest = self._over_bytes - passed, rest[passed:]
                continue
            piece = rest[: self._wanted_bytes - len(self._held)]
            self._held += piece
            rest = rest[len(piece) :]
            if len(self._held) == self._wanted_bytes and (message := self._whole()):
                found.append(message)
        return found

    def _whole(self) -> bytes:
        """What is held is whole: a message; empty where it is but the length of one."""
        if self._wanted_bytes > LENGTH_BYTES:
            message = bytes(self._held[LENGTH_BYTES:])
            self._held.clear()
            self._wanted_bytes = LENGTH_BYTES
            return message
        length = int.from_bytes(self._held, "big")
        self._is_other = length < MESSAGE_LEAST_BYTES
        if length <= MESSAGE_LIMIT_BYTES:
            self._wanted_bytes = LENGTH_BYTES + length
        else:
            self._held.clear()
            self._over_bytes = length
        return b""
