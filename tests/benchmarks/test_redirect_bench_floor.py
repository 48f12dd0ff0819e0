"""What bounds windivert: every packet is turned round, and nothing else is done with it."""

from collections import deque

from benchmarks.redirect.floor import turn
from mitmsec_redirect.divert_library import Batch, Handle, HandleShut, HandleStats, Setting
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, RecordFlag

OUT = RecordFlag.OUTBOUND | RecordFlag.IP_CHECKSUM


class Once(Handle):
    """Gives its batches, and then it is shut."""

    divided_above = 20_000

    def __init__(self, *batches: list[bytes]) -> None:
        self._batches = deque(batches)
        self.sent: list[tuple[bytes, list[int]]] = []

    def receive(self, batch: Batch, timeout_s: float) -> tuple[int, int]:
        if not self._batches:
            raise HandleShut
        offset, packets = 0, self._batches.popleft()
        for at, packet in enumerate(packets):
            record = bytearray(RECORD_BYTES)
            record[FLAGS_AT] = OUT
            offset = batch.put(at, offset, packet, record)
        return len(packets), offset

    def send(self, batch: Batch, count: int, length: int) -> int:
        flags = [batch.addresses[at * RECORD_BYTES + FLAGS_AT] for at in range(count)]
        self.sent.append((bytes(batch.bytes[:length]), flags))
        return 0

    def set(self, setting: Setting, value: int) -> None: ...
    def shutdown(self) -> None: ...
    def close(self) -> None: ...

    def stats(self) -> HandleStats:
        return HandleStats()


def packet(size: int) -> bytes:
    return bytes([0x45, 0]) + size.to_bytes(2) + bytes(size - 4)


def test_all_packets_come_in_as_they_went_out():
    handle = Once([packet(60), packet(1500)], [], [packet(40)])
    turn(handle)
    assert handle.sent == [
        (packet(60) + packet(1500), [RecordFlag.IP_CHECKSUM] * 2),
        (packet(40), [RecordFlag.IP_CHECKSUM]),
    ]


def test_no_sum_is_computed_of_what_is_divided_later():
    handle = Once([packet(60), packet(20_001), packet(20_000)])
    turn(handle)
    believed = RecordFlag.IP_CHECKSUM | RecordFlag.TCP_CHECKSUM
    assert handle.sent[0][1] == [RecordFlag.IP_CHECKSUM, believed, RecordFlag.IP_CHECKSUM]
