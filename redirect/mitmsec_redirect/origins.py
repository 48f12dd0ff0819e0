"""Where a diverted connection was meant to go: looked up by the client's socket cookie, in a map that the kernel fills.

For the gate, which runs without privilege: element commands by inherited descriptor are allowed there whatever
`kernel.unprivileged_bpf_disabled` says (Linux 5.19). Imports nothing but the map layer and the record's layout.
"""

from __future__ import annotations

from mitmsec_redirect.bpf import Map
from mitmsec_redirect.records import ATTEMPT, COOKIE, Origin, parse_origin

__all__ = ["Origin", "OriginTable"]


class OriginTable:
    """The origins map by its inherited descriptor. The kernel drops the entries used least recently when it is full."""

    def __init__(self, map_fd: int) -> None:
        self._map = Map(map_fd, COOKIE.size, ATTEMPT.size)

    def take(self, cookie: int) -> Origin | None:
        """The origin of the socket with this cookie, which makes room for another; None: our hook did not divert it.

        Cookies are never reused.
        """
        value = self._map.take(COOKIE.pack(cookie))
        return None if value is None else parse_origin(value)

    def find(self, cookie: int) -> Origin | None:
        """The same, and it stays: of a socket whose datagrams go on coming."""
        value = self._map.lookup(COOKIE.pack(cookie))
        return None if value is None else parse_origin(value)
