"""Fuzzed: `nat.rewrite` and `Fragments.rewrite`, over a batch of whatever packets.

Held against a plain account of what should happen: which packets move and where to, that only addresses, ports and a
checksum change, that a checksum is as right afterwards as it was before, that the answer to a moved packet comes back
as the answer to the packet that was sent, and that the fast way and the slow one do the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from mitmsec_redirect.fragments import Fragments
from mitmsec_redirect.nat import Added, Flow, NatTable, rewrite
from mitmsec_redirect.packet import TCP, Malformed, Packet, parse, split

GATE = 8080
FLOWS_MOST = 4
REMEMBERED_MOST = 2
RECORD, FLAGS = 80, 10
OUTBOUND, TCP_CHECKSUM = 0x02, 0x40

type Piece = tuple[int, int, Packet | Malformed]
type Ends = tuple[bytes, int, bytes, int]  # source, its port, destination, its port


def attempt(data: bytes) -> None:
    """Flags of all records; whose flows are diverted; which of them are on loopback; then a batch."""
    if len(data) < 4:
        return
    flags, diverted, loopback, batch = data[0], data[1], data[2], data[3:]
    pieces = list(split(batch, len(batch)))
    table = _table(pieces, diverted, loopback)
    after, flags_after = _rewritten(batch, flags, pieces, table)
    assert (after, flags_after) == _slowly(batch, flags, pieces, table), "two ways, two results"
    for piece, flag in zip(pieces, flags_after, strict=True):
        _is_as_it_should_be(piece, batch, after, flags, flag, table)
    _answers_come_back(pieces, batch, after, flags_after, table)


def _table(pieces: Sequence[Piece], diverted: int, loopback: int) -> NatTable:
    table = NatTable(gate_port=GATE, limit=FLOWS_MOST)
    for place, (_, _, view) in enumerate(pieces):
        ends = _ends(view)
        if ends is None or not diverted >> place % 8 & 1:
            continue
        client, client_port, origin, origin_port = ends
        flow = Flow(
            client=client,
            client_port=client_port,
            origin=origin,
            origin_port=origin_port,
            loopback=bool(loopback >> place % 8 & 1),
        )
        assert (table.add(flow) is Added.ADDED) == (flow in table)
        assert len(table) <= FLOWS_MOST
        assert len(table.moves) == 2 * len(table)
    return table


def _rewritten(batch: bytes, flags: int, pieces: Sequence[Piece], table: NatTable) -> tuple[bytes, list[int]]:
    """The batch and the flags of its records, after the fast way and then the slow way for what that left."""
    buffer, records = bytearray(batch), _records(flags, len(pieces))
    places = {offset: (index, size) for index, (offset, size, _) in enumerate(pieces)}
    fragments = Fragments()
    for index, offset, size in rewrite(memoryview(buffer), len(buffer), memoryview(records), len(pieces), table):
        assert places[offset] == (index, size), "what is left is a piece of the batch"
        _one_by_one(fragments, buffer, records, pieces[index], index, table)
    return bytes(buffer), list(records[FLAGS::RECORD])


def _slowly(batch: bytes, flags: int, pieces: Sequence[Piece], table: NatTable) -> tuple[bytes, list[int]]:
    """The same by the slow way alone; a memory that is too small for it stays small."""
    buffer, records = bytearray(batch), _records(flags, len(pieces))
    forgetful, fragments = Fragments(limit=REMEMBERED_MOST), Fragments()
    for index, piece in enumerate(pieces):
        _one_by_one(forgetful, bytearray(batch), _records(flags, len(pieces)), piece, index, table)
        assert len(forgetful) <= REMEMBERED_MOST
        _one_by_one(fragments, buffer, records, piece, index, table)
    return bytes(buffer), list(records[FLAGS::RECORD])


def _one_by_one(
    fragments: Fragments, buffer: bytearray, records: bytearray, piece: Piece, index: int, table: NatTable
) -> None:
    offset, _, view = piece
    if isinstance(view, Packet):
        fragments.rewrite(buffer, offset, view, records, index, table, now_s=0.0)


def _is_as_it_should_be(piece: Piece, batch: bytes, after: bytes, flags: int, flag: int, table: NatTable) -> None:
    offset, size, view = piece
    before, behind = batch[offset : offset + size], after[offset : offset + size]
    ends = _ends(view)
    fate = None if ends is None else _fate(ends, table)
    is_later = isinstance(view, Packet) and view.fragment is not None and view.fragment.offset > 0
    if isinstance(view, Malformed) or (fate is None and not is_later) or _is_without_checksum(view):
        assert (behind, flag) == (before, flags), "not ours to touch"
        return
    moved = parse(behind)
    assert isinstance(moved, Packet)
    assert moved.length == view.length
    assert (moved.transport, moved.protocol, moved.fragment) == (view.transport, view.protocol, view.fragment)
    assert _blank(before, view) == _blank(behind, view), "nothing changes but addresses, ports and a checksum"
    assert _sum(before[: view.transport]) == _sum(behind[: view.transport])
    if fate is not None:
        ends_after, is_loopback = fate
        assert _ends(moved) == ends_after
        assert not flag & OUTBOUND or is_loopback
        assert (flags ^ flag) & ~(OUTBOUND | TCP_CHECKSUM) == 0
        if flag & TCP_CHECKSUM:
            assert _residue(before, view) == _residue(behind, moved), "a checksum is as right as it was"


def _answers_come_back(
    pieces: Sequence[Piece], batch: bytes, after: bytes, flags: Sequence[int], table: NatTable
) -> None:
    """Whoever answers each moved packet as it came is answered by the one whom the packet was sent to."""
    fragments, records = Fragments(), _records(0, len(pieces))
    records[FLAGS::RECORD] = bytes(flag | OUTBOUND for flag in flags)
    for index, (offset, size, view) in enumerate(pieces):
        before, behind = batch[offset : offset + size], after[offset : offset + size]
        if isinstance(view, Malformed) or before == behind:
            continue
        answer = bytearray(_turned(behind, view))
        there = parse(answer)
        assert isinstance(there, Packet)
        assert fragments.rewrite(answer, 0, there, records, index, table, now_s=0.0), "its answer goes astray"
        back = _turned(answer, view)
        assert _blank(back, view, ends=False) == _blank(before, view, ends=False)
        assert _checksum(back, view) % 0xFFFF == _checksum(before, view) % 0xFFFF


def _records(flags: int, count: int) -> bytearray:
    records = bytearray(RECORD * count)
    records[FLAGS::RECORD] = bytes([flags]) * count
    return records


def _ends(view: Packet | Malformed) -> Ends | None:
    if isinstance(view, Malformed) or view.protocol != TCP or view.source_port is None or view.destination_port is None:
        return None
    return view.source, view.source_port, view.destination, view.destination_port


def _fate(ends: Ends, table: NatTable) -> tuple[Ends, bool] | None:
    """What becomes of a packet, by what a diverted flow is."""
    for flow in table:
        client, origin = (flow.client, flow.client_port), (flow.origin, flow.origin_port)
        seen_from, gate = (flow.client, flow.origin) if flow.loopback else (flow.origin, flow.client)
        if ends == (*client, *origin):
            return (seen_from, flow.client_port, gate, GATE), flow.loopback
        if ends == (gate, GATE, seen_from, flow.client_port):
            return (*origin, *client), flow.loopback
    return None


def _is_without_checksum(view: Packet) -> bool:
    return _ends(view) is not None and view.transport + 18 > view.length


def _blank(packet: bytes | bytearray, view: Packet, *, ends: bool = True) -> bytes:
    """The packet without what may change: its checksum, with `ends` also addresses and ports."""
    bare = bytearray(packet)
    if _ends(view) is not None:
        bare[view.transport + 16 : view.transport + 18] = bytes(2)
    if ends:
        start, size = (12, 8) if view.version == 4 else (8, 32)
        bare[start : start + size] = bytes(size)
        if _ends(view) is not None:
            bare[view.transport : view.transport + 4] = bytes(4)
    return bytes(bare)


def _turned(packet: bytes | bytearray, view: Packet) -> bytes:
    """As its receiver would answer it: the same with ends exchanged."""
    turned = bytearray(packet)
    start, size = (12, 4) if view.version == 4 else (8, 16)
    turned[start : start + size] = packet[start + size : start + 2 * size]
    turned[start + size : start + 2 * size] = packet[start : start + size]
    if _ends(view) is not None:
        at = view.transport
        turned[at : at + 4] = packet[at + 2 : at + 4] + packet[at : at + 2]
    return bytes(turned)


def _checksum(packet: bytes, view: Packet) -> int:
    return 0 if _ends(view) is None else int.from_bytes(packet[view.transport + 16 : view.transport + 18])


def _residue(packet: bytes, view: Packet) -> int:
    """What a receiver computes over addresses and segment, with what is the same in both left out."""
    return _sum(view.source + view.destination + packet[view.transport :])


def _sum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071; -0 and 0 are the same."""
    padded = data + bytes(len(data) % 2)
    return sum(struct.unpack(f"!{len(padded) // 2}H", padded)) % 0xFFFF
