"""Where a diverted connection was meant to go: looked up by the client's socket cookie, in a map that the kernel fills.

For the gate, which runs without privilege: element commands by inherited descriptor are allowed there whatever
`kernel.unprivileged_bpf_disabled` says (Linux 5.19). Imports nothing but the map layer and the record's layout.
"""

from __future__ import annotations

from mitmsec_redirect.bpf import Map
from mitmsec_redirect.records import ATTEMPT, COOKIE, Origin, parse_origin, timeless

__all__ = ["Origin", "OriginTable", "parse_origin", "timeless"]


class OriginTable:
    """The origins map by its inherited descriptor. The kernel drops the entries used least recently when it is full."""

    def __init__(self, map_fd: int) -> None:
        self._map = Map(map_fd, COOKIE.size, ATTEMPT.size)

    def take(self, cookie: int) -> bytes | None:
        """The origin of the socket with this cookie, for `parse_origin`; its place is free for another.

        None: our hook did not divert it. Cookies are never reused.
        """
        return self._map.take(COOKIE.pack(cookie))

    def find(self, cookie: int) -> bytes | None:
        """The same, and it stays: of a socket whose datagrams go on coming."""
        return self._map.lookup(COOKIE.pack(cookie))
