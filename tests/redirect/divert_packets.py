"""Packets, address records, and a handle whose other end is the test."""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from mitmsec_redirect.divert_library import Batch, Handle, HandleShut, HandleStats, Setting
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, RecordFlag
from mitmsec_redirect.packet import Malformed, length_at

V4 = bytes([192, 0, 2, 1]), bytes([203, 0, 113, 9])
V6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "09")
SYN, ACK = 0x02, 0x10


def tcp(
    source_port: int,
    destination_port: int,
    flags: int = ACK,
    payload: bytes = b"",
    sequence: int = 1,
    *,
    v6: bool = False,
    reply: bool = False,
) -> bytes:
    """From 192.0.2.1 to 203.0.113.9, or their like in IPv6; a `reply` the other way round."""
    addresses = b"".join(reversed(V6 if v6 else V4) if reply else (V6 if v6 else V4))
    body = struct.pack("!HHIIBBHHH", source_port, destination_port, sequence, 0, 5 << 4, flags, 8192, 0, 0) + payload
    if v6:
        return struct.pack("!IHBB", 6 << 28, len(body), 6, 64) + addresses + body
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0) + addresses + body


def syn(port: int = 40000, sequence: int = 1, *, v6: bool = False) -> bytes:
    return tcp(port, 443, SYN, b"", sequence, v6=v6)


def udp(payload: bytes) -> bytes:
    body = struct.pack("!HHHH", 40000, 443, 8 + len(payload), 0) + payload
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0) + b"".join(V4) + body


def address(flags: int = RecordFlag.OUTBOUND, interface: int = 1, *, v6: bool = False) -> bytes:
    record = bytearray(RECORD_BYTES)
    record[FLAGS_AT] = flags | (RecordFlag.IPV6 if v6 else 0)
    record[16:20] = interface.to_bytes(4, "little")
    return bytes(record)


def until(true: Callable[[], bool], patience_s: float = 10) -> None:
    """Wait for what another thread does."""
    deadline_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


class Wire(Handle):
    """Gives what it is given; keeps what is sent, packet by packet."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes]] = []
        self.refuses = 0
        self.told = HandleStats()
        self.is_closed = False
        self.fails: Exception | None = None
        self._given: deque[list[tuple[bytes, bytes]]] = deque()
        self._shut = False
        self._changed = threading.Condition()

    def give(self, packets: list[tuple[bytes, bytes]]) -> None:
        with self._changed:
            self._given.append(packets)
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self.fails = error
            self._changed.notify_all()

    def receive(self, batch: Batch, timeout_s: float) -> tuple[int, int]:
        with self._changed:
            self._changed.wait_for(lambda: self._given or self._shut or self.fails, timeout_s)
            if self.fails:
                raise self.fails
            if not self._given:
                if self._shut:
                    raise HandleShut
                return 0, 0
            offset = 0
            for at, (data, record) in enumerate(packets := self._given.popleft()):
                offset = batch.put(at, offset, data, record)
            return len(packets), offset

    def send(self, batch: Batch, count: int, length: int) -> int:
        offset = 0
        for at in range(count):
            told = length_at(batch.bytes, offset, length)
            size = length - offset if isinstance(told, Malformed) else told
            record = bytes(batch.addresses[at * RECORD_BYTES : (at + 1) * RECORD_BYTES])
            self.sent.append((bytes(batch.bytes[offset : offset + size]), record))
            offset += size
            if offset >= length:
                break
        return self.refuses

    def set(self, setting: Setting, value: int) -> None:
        """Nothing to set."""

    def shutdown(self) -> None:
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def stats(self) -> HandleStats:
        assert not self.is_closed
        return self.told

    def close(self) -> None:
        self.is_closed = True
