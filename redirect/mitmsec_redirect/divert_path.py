"""The way of diverted packets: from a data handle through the NAT table and back, batch by batch, one thread a handle.

The filter of a handle cannot be changed, so for more flows there is a new handle, and no packet falls between the two:

    old handle   ══ takes ══════════════════╗ shut ── drained ── closed
    new handle            opened ══ takes ═════════════════════════════ …
                          └ from here on new flows may begin
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mitmsec_redirect.divert_library import Batch, Handle, HandleShut, HandleStats
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, RecordFlag
from mitmsec_redirect.fragments import Fragments
from mitmsec_redirect.nat import PACKET_MOST, Left, NatTable, rewrite
from mitmsec_redirect.packet import TCP, Packet, parse

PRIORITY_FIRST, PRIORITIES = 1000, 500  # of data handles; neighbours in time must differ
WAIT_S = 0.5

type Opens = Callable[[str, int], Handle]  # with this filter and priority


class Translator:
    """Rewrites batches by a table. One for each thread; the table is shared."""

    def __init__(self, table: NatTable, divided_above: int = PACKET_MOST) -> None:
        self._table, self._fragments, self._divided_above = table, Fragments(), divided_above
        self.strays = 0  # packets of the gate that belong to no flow; nobody is to see them

    def translate(self, batch: Batch, count: int, length: int) -> tuple[int, int]:
        """Rewrite the packets of known flows, drop the gate's strays. How many packets and bytes there are now."""
        left = rewrite(batch.view, length, batch.address_view, count, self._table, self._divided_above)
        strays = [one for one in left if self._is_stray(batch, *one)] if left else []
        return without(batch, count, length, strays) if strays else (count, length)

    def _is_stray(self, batch: Batch, index: int, offset: int, length: int) -> bool:
        packet = parse(batch.view, offset, offset + length)
        if not isinstance(packet, Packet) or self._fragments.rewrite(
            batch.view, offset, packet, batch.address_view, index, self._table, now_s=time.monotonic()
        ):
            return False
        goes_out = batch.addresses[index * RECORD_BYTES + FLAGS_AT] & RecordFlag.OUTBOUND
        is_stray = bool(goes_out and packet.protocol == TCP and packet.source_port == self._table.gate_port)
        self.strays += is_stray
        return is_stray


def without(batch: Batch, count: int, length: int, dropped: list[Left]) -> tuple[int, int]:
    """Close the gaps that these packets leave. How many packets and bytes remain."""
    for index, offset, size in reversed(dropped):
        batch.view[offset : length - size] = bytes(batch.view[offset + size : length])
        at, end = index * RECORD_BYTES, count * RECORD_BYTES
        batch.address_view[at : end - RECORD_BYTES] = bytes(batch.address_view[at + RECORD_BYTES : end])
        count, length = count - 1, length - size
    return count, length


class DataPath:
    """The data handle, or two of them while the filter is exchanged. `exchange` is for one thread."""

    def __init__(self, table: NatTable, opens: Opens) -> None:
        self._table, self._opens = table, opens
        self._lock = threading.Lock()
        self._pumps: list[_Pump] = []
        self._exchanges = 0
        self._ended = HandleStats()
        self._ended_unsent = self._ended_strays = 0

    def exchange(self, text: str) -> None:
        """Take what this filter says from now on; the last one's packets are not lost. Raises what `opens` raises."""
        handle = self._opens(text, PRIORITY_FIRST - self._exchanges % PRIORITIES)
        self._exchanges += 1
        with self._lock:
            before = list(self._pumps)
            self._pumps.append(_Pump(handle, self._table, self._ended_one))
        for old in before:
            old.shut()

    def _ended_one(self, pump: _Pump) -> None:
        """Its handle is drained; called by its own thread, which then closes it."""
        with self._lock:
            self._pumps.remove(pump)
            self._ended += pump.stats()
            self._ended_unsent += pump.unsent
            self._ended_strays += pump.translator.strays

    def stats(self) -> HandleStats:
        """Of all data handles that there have been."""
        with self._lock:
            return sum((pump.stats() for pump in self._pumps), self._ended)

    @property
    def unsent(self) -> int:
        """Packets that the system did not take back."""
        with self._lock:
            return self._ended_unsent + sum(pump.unsent for pump in self._pumps)

    @property
    def strays(self) -> int:
        """Packets of the gate that belonged to no flow, dropped."""
        with self._lock:
            return self._ended_strays + sum(pump.translator.strays for pump in self._pumps)

    @property
    def failed(self) -> str:
        """Why a handle ended unasked; empty: none did."""
        with self._lock:
            return next((pump.failed for pump in self._pumps if pump.failed), "")

    def close(self) -> None:
        """Take no more, send on what was taken, and let go of the handles. Idempotent."""
        with self._lock:
            pumps = list(self._pumps)
        for pump in pumps:
            pump.shut()
        for pump in pumps:
            pump.join()


class _Pump:
    """One data handle, until it is shut and drained."""

    def __init__(self, handle: Handle, table: NatTable, ended: Callable[[_Pump], None]) -> None:
        self.translator = Translator(table, handle.divided_above)
        self.unsent = 0
        self.failed = ""
        self._handle = handle
        self._ended = ended
        self._open = threading.Lock()  # while others than the thread itself use the handle
        self._closed = self._shut = False
        self._thread = threading.Thread(target=self._run, name="divert-data", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        batch = Batch()
        try:
            while True:
                count, length = self._handle.receive(batch, WAIT_S)
                if count:
                    count, length = self.translator.translate(batch, count, length)
                    self.unsent += self._handle.send(batch, count, length)
        except HandleShut:
            self._ended(self)
        except Exception as error:
            self.failed = repr(error)  # it stays in the list, and is told of
        finally:
            with self._open:
                self._closed = True
                self._handle.close()

    def shut(self) -> None:
        with self._open:
            if not self._closed and not self._shut:
                self._shut = True
                self._handle.shutdown()

    def stats(self) -> HandleStats:
        with self._open:
            return HandleStats() if self._closed else self._handle.stats()
