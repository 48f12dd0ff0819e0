"""From the log to where its events go, at least once each and in order.

    read(sent) ─► batch ─► sink.take ─► … ─► sink.settle ─► keep(position)

A position is kept only when everything before it has been settled. Where that fails, what was taken since is taken once
more: so an event may come twice, and none is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from mitmsec.audit.export.cursor import Position
from mitmsec.core.model import Value

POLL_S = 1.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


class Undelivered(Exception):
    """Events could not be handed over, or may not have arrived; the text says why."""


class Sink(Protocol):
    """Where events go."""

    settles_after: int  # records: so many may be unsettled, then they are settled
    settles_within_s: float

    def take(self, records: Sequence[bytes]) -> None:
        """Raises Undelivered."""

    def settle(self) -> None:
        """What was taken is safe when this returns. Raises Undelivered; then all of it may be missing."""


class Batch(Value, frozen=True):
    """Some events as they are to be written, and where one is after them."""

    records: tuple[bytes, ...]
    end: Position


class Clock(Protocol):
    """Time, as a delivery sees it."""

    def now_s(self) -> float: ...

    def pause(self, span_s: float) -> None: ...


class Delivery:
    """One export. `read` gives what comes after a position, None where there is nothing; `keep` puts one on record."""

    def __init__(
        self,
        read: Callable[[Position], Batch | None],
        sink: Sink,
        keep: Callable[[Position], None],
        clock: Clock,
        told: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._read, self._sink, self._keep, self._clock, self._told = read, sink, keep, clock, told
        self._unsettled, self._since_s = 0, 0.0
        self._wait_s = 0.0  # until the next attempt; 0: the last one went well

    def run(self, start: Position, *, follow: bool) -> None:
        """Until everything is settled; with `follow` for ever. Raises Undelivered, unless it follows."""
        sent = settled = start
        try:
            while True:
                try:
                    batch = self._read(sent)
                    if batch is not None:
                        self._take(batch)
                        sent = batch.end
                    if sent != settled and self._is_due(last=batch is None and not follow):
                        settled = self._settle(sent)
                except Undelivered as error:
                    if not follow:
                        raise
                    sent, self._unsettled = settled, 0
                    self._wait(error)
                    continue
                if batch is None:
                    if not follow:
                        return
                    self._clock.pause(POLL_S)
        except KeyboardInterrupt:
            with suppress(Undelivered):
                self._settle(sent)
            raise

    def _take(self, batch: Batch) -> None:
        if batch.records:
            self._sink.take(batch.records)
            if not self._unsettled:
                self._since_s = self._clock.now_s()
            self._unsettled += len(batch.records)

    def _is_due(self, *, last: bool) -> bool:
        waited_s = self._clock.now_s() - self._since_s
        is_full = self._unsettled >= self._sink.settles_after or waited_s >= self._sink.settles_within_s
        return last or not self._unsettled or is_full

    def _settle(self, sent: Position) -> Position:
        if self._unsettled:
            self._sink.settle()
            self._unsettled = 0
            if self._wait_s:
                self._told("delivered again")
                self._wait_s = 0.0
        self._keep(sent)
        return sent

    def _wait(self, error: Undelivered) -> None:
        self._wait_s = min(self._wait_s * 2 or FIRST_WAIT_S, LONGEST_WAIT_S)
        self._told(f"{error}; trying again in {self._wait_s:.0f} s")
        self._clock.pause(self._wait_s)
