"""A name server's side of DNS over TCP, handed on with no more in it than may be offered (mitmsec.core.dns_offers).

    length │ message │ length │ message │ …     asked for such records by now? held until it is whole, then handed on
                                                else handed on as it comes

Bytes of anybody: what was not asked for, what is longer than any such answer, and everything from the first message on
that is too short to be one, goes on as it comes. No more than a message is ever held.
"""

from __future__ import annotations

from mitmsec.core.dns_frames import LENGTH_BYTES, MESSAGE_LEAST_BYTES, MESSAGE_LIMIT_BYTES
from mitmsec.core.dns_offers import Offers, asks_for_offers, limited


class DnsAnswers:
    """Of one connection."""

    __slots__ = ("_at", "_held", "_is_other", "_length", "_offers", "is_asked")

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._held: bytearray | None = None  # of the message that is under way, with its length; None: it is not held
        self._at = self._length = 0  # how many bytes of it have come, and how long it is
        self._is_other = False  # no DNS
        self.is_asked = False  # the program has asked for such records

    def asked(self, message: bytes) -> None:
        """The program has sent this."""
        self.is_asked = self.is_asked or asks_for_offers(message)

    def fed(self, data: bytes) -> bytes:
        """What is to be handed on, now that `data` has come; with none, which is the end, all that was held."""
        if not data:
            return self._released()
        handed, rest = bytearray(), memoryview(data)
        while rest and not self._is_other:
            if not self._at:
                self._held = bytearray() if self.is_asked else None
            size = LENGTH_BYTES - self._at if self._at < LENGTH_BYTES else LENGTH_BYTES + self._length - self._at
            piece, rest = rest[:size], rest[size:]
            handed += self._of_message(piece)
        return bytes(handed + self._released() + rest) if self._is_other else bytes(handed)

    def _of_message(self, piece: memoryview) -> bytes:
        """The next bytes of the message that is under way: no more than its length, or than what follows that."""
        for byte in piece if self._at < LENGTH_BYTES else b"":
            self._length = (self._length << 8 | byte) & 0xFFFF
        self._at += len(piece)
        handed = bytes(piece) if self._held is None else b""
        if self._held is not None:
            self._held += piece
        if self._at == LENGTH_BYTES:
            self._is_other = self._length < MESSAGE_LEAST_BYTES
            return handed if self._length <= MESSAGE_LIMIT_BYTES else handed + self._released()
        if self._at == LENGTH_BYTES + self._length:
            handed += self._whole()
            self._at = 0
        return handed

    def _whole(self) -> bytes:
        released = self._released()
        return released[:LENGTH_BYTES] + limited(released[LENGTH_BYTES:], self._offers)

    def _released(self) -> bytes:
        held, self._held = self._held or b"", None
        return bytes(held)
