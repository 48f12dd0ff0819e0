"""The UDP flows that live, and when each of them ends. No clock of its own: times are CLOCK_MONOTONIC, nanoseconds.

    a flow's record ──► lives ──┬── its socket is closed, or connected to somebody else ──────────► ended
                                ├── looked at: nothing was sent or received for `idle_ns` ────────► ended
                                ├── looked at: the kernel keeps it no more (it made room) ────────► ended, not counted
                                └── looked at for the first time, after LONG_LIVED_NS ────────────► told while it lives

What a connected socket sends is not seen, so its flow is never idle; the kernel forgets it when the socket is closed,
which the next look finds even if the record of that was lost. Each flow is looked at when it could be idle at the
earliest, so what a look costs does not grow with the number of flows.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Protocol, assert_never

import msgspec

from mitmsec.core.model import Value
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow

LIVE_LIMIT = 8192
IDLE_NS = 30_000_000_000  # a resolver answers within it; RFC 4787 lets NATs forget after twice and four times as long
LONG_LIVED_NS = 10_000_000_000


class Counted(Protocol):
    """Where datagrams are counted: `udp_hook.UdpHook`."""

    def counts(self, key: bytes) -> Counts | None: ...
    def take(self, key: bytes) -> Counts | None: ...


class _Live[Known](msgspec.Struct):
    number: int
    flow: UdpFlow
    key: bytes
    known: Known
    connected: bool
    is_partial: bool = False  # its counts began anew: the kernel had forgotten it in between
    is_told: bool = False
    is_seen: bool = False  # a datagram was; else only that the socket was connected


class Told[Known](Value, frozen=True):
    """One flow as it is to be recorded: it has `ended`, or lives long. Datagrams are None where not all are counted."""

    number: int
    flow: UdpFlow
    known: Known
    until_ns: int
    ended: bool
    sent: int | None = None
    received: int | None = None
    seen: bool = True  # a datagram was; else only that its socket was connected


class UdpTable[Known]:
    """`ask` says at once what is known of whose a new flow is; it comes back with the flow. Bounded by `limit`."""

    def __init__(
        self,
        counted: Counted,
        ask: Callable[[UdpFlow], Known],
        *,
        limit: int = LIVE_LIMIT,
        idle_ns: int = IDLE_NS,
        long_lived_ns: int = LONG_LIVED_NS,
    ) -> None:
        self._counted, self._ask = counted, ask
        self._limit, self._idle_ns, self._long_lived_ns = limit, idle_ns, long_lived_ns
        self._numbers = itertools.count(1)
        self._live: dict[bytes, _Live[Known]] = {}
        self._by_socket: dict[int, dict[bytes, _Live[Known]]] = {}
        self._looks: list[tuple[int, int, bytes]] = []  # a heap: when, whose

    def __len__(self) -> int:
        return len(self._live)

    def heard(self, record: UdpFlow | SocketReleased) -> list[Told[Known]] | None:
        """What ends by it. None: there is no room for another flow, and it will not be told."""
        match record:
            case SocketReleased(socket_cookie=cookie, at_ns=at_ns):
                return [self._end(live, at_ns) for live in list(self._by_socket.get(cookie, {}).values())]
            case UdpFlow():
                return self._begun(record)
            case _:
                assert_never(record)

    def _begun(self, flow: UdpFlow) -> list[Told[Known]] | None:
        key = flow.key
        before = [live for live in self._by_socket.get(flow.socket_cookie, {}).values() if live.connected]
        ended = [self._end(live, flow.at_ns) for live in before if flow.connected and live.key != key]
        if (known := self._live.get(key)) is not None:
            known.connected = known.connected or flow.connected
            known.is_partial = True
            known.is_seen = known.is_seen or not flow.connected
        elif len(self._live) >= self._limit:
            return ended or None
        else:
            live = _Live(next(self._numbers), flow, key, self._ask(flow), flow.connected, is_seen=not flow.connected)
            self._add(live)
        return ended

    def due(self, now_ns: int) -> list[Told[Known]]:
        """What is to be told because time has passed."""
        told: list[Told[Known]] = []
        while self._looks and self._looks[0][0] <= now_ns:
            _, number, key = heapq.heappop(self._looks)
            live = self._live.get(key)
            if live is not None and live.number == number:
                told += self._look(live, now_ns)
        return told

    def finish(self, now_ns: int) -> list[Told[Known]]:
        """All that live have ended: nobody looks any more."""
        return [self._end(live, now_ns) for live in list(self._live.values())]

    # -- one flow ------------------------------------------------------------------------------------------------------
    def _add(self, live: _Live[Known]) -> None:
        self._live[live.key] = live
        self._by_socket.setdefault(live.flow.socket_cookie, {})[live.key] = live
        self._look_at(live, live.flow.at_ns + self._long_lived_ns)

    def _look_at(self, live: _Live[Known], when_ns: int) -> None:
        heapq.heappush(self._looks, (when_ns, live.number, live.key))

    def _look(self, live: _Live[Known], now_ns: int) -> Iterable[Told[Known]]:
        counts = self._counted.counts(live.key)
        if counts is None:
            return [self._end(live, now_ns)]
        live.connected = live.connected or counts.connected
        moved_ns = now_ns if live.connected else counts.last_ns
        if moved_ns + self._idle_ns <= now_ns:
            return [self._end(live, counts.last_ns)]
        self._look_at(live, moved_ns + self._idle_ns)
        if live.is_told:
            return []
        live.is_told = True
        return [self._told(live, counts, now_ns, ended=False)]

    def _end(self, live: _Live[Known], at_ns: int) -> Told[Known]:
        del self._live[live.key]
        of_socket = self._by_socket[live.flow.socket_cookie]
        del of_socket[live.key]
        if not of_socket:
            del self._by_socket[live.flow.socket_cookie]
        return self._told(live, self._counted.take(live.key), at_ns, ended=True)

    def _told(self, live: _Live[Known], counts: Counts | None, at_ns: int, *, ended: bool) -> Told[Known]:
        seen = live.is_seen or (counts is not None and counts.sent + counts.received > 0)
        if counts is None or live.is_partial or live.connected or counts.connected:
            return Told(live.number, live.flow, live.known, at_ns, ended, seen=seen)
        return Told(live.number, live.flow, live.known, at_ns, ended, counts.sent, counts.received)
