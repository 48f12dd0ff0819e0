"""Later fragments of diverted flows go where their first fragment went. Nothing is reassembled."""

from __future__ import annotations

from mitmsec_redirect.nat import NatTable
from mitmsec_redirect.packet import Packet

FRAGMENTED_MOST, FRAGMENTED_AGE_S = 256, 30.0


class Fragments:
    """Remembers at most `limit` fragmented packets of diverted flows, each for `age_s`."""

    def __init__(self, *, limit: int = FRAGMENTED_MOST, age_s: float = FRAGMENTED_AGE_S) -> None: ...

    def rewrite(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        packet: Packet,
        addresses: bytearray | memoryview,
        index: int,
        table: NatTable,
        *,
        now_s: float,
    ) -> bool:
        """As `nat.rewrite_one`, for a packet that is a fragment. A later one whose first was not seen is left: False."""
