"""The gate's sign of life: a timestamp in a map, which the connect programs compare with the kernel's clock.

Written by the gate's own event loop, so a loop that hangs is seen as one, whatever its other threads do.
"""

from __future__ import annotations

import time

from mitmsec_redirect.bpf import Map
from mitmsec_redirect.records import HEARTBEAT, INDEX


class Heartbeat:
    """The heartbeat map by its inherited descriptor. Works without privilege (Linux 5.19)."""

    def __init__(self, map_fd: int) -> None:
        self._map = Map(map_fd, INDEX.size, HEARTBEAT.size)

    def beat(self) -> None:
        """Alive now. Due several times a second; after one second without, connections are no longer diverted."""
        self._map.update(INDEX.pack(0), HEARTBEAT.pack(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

    @property
    def last_ns(self) -> int:
        """CLOCK_MONOTONIC of the last beat."""
        value = self._map.lookup(INDEX.pack(0))
        assert value is not None  # an array map has all its elements
        last: int = HEARTBEAT.unpack(value)[0]
        return last
