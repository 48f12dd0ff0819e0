from __future__ import annotations

import errno
import io
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng_reader import (
    INTERFACE,
    NAMES,
    PACKET,
    PROCESS,
    SECRETS,
    SECTION,
    STATISTICS,
    Block,
    blocks,
    fields,
    flaws,
    needs_tshark,
    stream,
    time_ns,
    tshark,
)

from mitmsec.capture.writer import FLUSH_BYTES, FLUSH_NS, LINGER_NS, PATIENCE_NS, CaptureFailed, CaptureWriter
from mitmsec.core.model import Endpoint, Process

CURL = Process(pid=42, exe="/usr/bin/curl", name="curl", user="alice", sha256="ab" * 32)
WGET = Process(pid=43, exe="/usr/bin/wget")
LOCAL, REMOTE = Endpoint.of("192.0.2.1", 40000), Endpoint.of("203.0.113.5", 443)
LOCAL6, REMOTE6 = Endpoint.of("2001:db8::1", 40000), Endpoint.of("2001:db8::2", 443)
LINE = b"CLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48 + b"\n"
T0 = 1_790_000_000_000_000_000


class Kept(io.BytesIO):
    """A file whose content outlives it."""

    content = b""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


class Full(io.RawIOBase):
    """A raw file with room for `room` bytes, which then fails like a full disk (or has no room at all, with None)."""

    def __init__(self, room: int, *, error: int | None = errno.ENOSPC, truncates: bool = True) -> None:
        self.content = bytearray()
        self.room, self.error, self.truncates = room, error, truncates

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.truncates

    def tell(self) -> int:
        return len(self.content)

    def write(self, data: Any) -> int | None:
        taken = min(len(data), self.room - len(self.content))
        if taken == 0:
            if self.error is None:
                return None
            raise OSError(self.error, os.strerror(self.error))
        self.content += data[:taken]
        return taken

    def truncate(self, size: int | None = None) -> int:
        if not self.truncates or size is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        del self.content[size:]
        return size


def packets(found: list[Block]) -> list[Block]:
    return [block for block in found if block.kind == PACKET]


def payload(packet: Block) -> bytes:
    return packet.data[20 + (packet.data[32] >> 4 << 2) :]


def test_a_new_file_is_readable_before_the_first_flow() -> None:
    file = io.BytesIO()
    CaptureWriter(file, command="curl x", application="mitmsec 1", system="Linux")
    section, interface = blocks(file.getvalue())
    assert (section.kind, section.option(3), section.option(4)) == (SECTION, [b"Linux"], [b"mitmsec 1"])
    assert (interface.kind, interface.option(3)) == (INTERFACE, [b"curl x"])


def test_a_flow_has_handshake_data_end_and_its_process() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0, "action: capture", host="origin.test")
    writer.data("f", True, b"ping", T0 + 1)
    writer.data("f", False, b"pong", T0 + 2)
    writer.end_flow("f", T0 + 3, comment="outcome: completed")
    writer.close()
    found = blocks(file.content)
    assert Counter(block.kind for block in found) == {
        **dict.fromkeys((SECTION, INTERFACE, NAMES, PROCESS, STATISTICS), 1),
        PACKET: 10,
    }
    sent = packets(found)
    assert [payload(packet) for packet in sent if payload(packet)] == [b"ping", b"pong"]
    assert [time_ns(packet) - T0 for packet in sent] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert sent[0].option(1)[0].decode().splitlines()[-1] == "action: capture"
    assert [packet.option(1) for packet in sent[3:7]] == [[b"/usr/bin/curl pid 42"], [], [b"/usr/bin/curl pid 42"], []]
    assert sent[7].option(1) == [b"/usr/bin/curl pid 42\noutcome: completed"]
    assert {value for packet in sent for value in packet.option(0x8001)} == {struct.pack("<I", 0)}
    assert found[-1].option(4) == [struct.pack("<Q", 10)]


def test_each_process_has_one_block_and_flows_point_at_theirs() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    for number, process in enumerate((CURL, WGET, CURL)):
        writer.open_flow(f"f{number}", process, LOCAL, Endpoint.of("203.0.113.5", number), T0)
    writer.close()
    found = blocks(file.content)
    assert [(b.fixed, b.option(2)) for b in found if b.kind == PROCESS] == [
        (struct.pack("<I", 42), [b"curl"]),
        (struct.pack("<I", 43), [b"wget"]),
    ]
    pointers = [struct.unpack("<I", packet.option(0x8001)[0])[0] for packet in packets(found)]
    assert pointers == [0] * 3 + [1] * 3 + [0] * 3


def test_data_that_comes_after_the_end_stands_before_the_closing_packets() -> None:
    """The gate's word and the worker's bytes come through different sockets."""
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.end_flow("f", T0 + 1)
    writer.end_flow("f", T0 + 9)  # said twice, ended once
    writer.data("f", False, b"late", T0 + 5)
    writer.tick(T0 + 1 + LINGER_NS - 1)
    writer.data("f", False, b"last", T0 + LINGER_NS)
    writer.tick(T0 + 1 + LINGER_NS)
    writer.data("f", False, b"too late", T0 + 2 * LINGER_NS)
    writer.close()
    found = blocks(file.content)
    sent = packets(found)
    assert [payload(packet) for packet in sent if payload(packet)] == [b"late", b"last"]
    assert [packet.data[33] & 1 for packet in sent].index(1) == 7
    assert time_ns(sent[-1]) == T0 + LINGER_NS
    assert found[-1].option(5) == [struct.pack("<Q", 1)]


@pytest.mark.parametrize("ended", [True, False])
def test_a_flow_is_finished_before_the_next_one_between_the_same_ports(ended: bool) -> None:
    """Otherwise the closing packets of the first would belong to the second."""
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    if ended:
        writer.end_flow("f", T0 + 1)
    writer.open_flow("g", CURL, LOCAL, REMOTE, T0 + 2)
    writer.tick(T0 + 2 * LINGER_NS)
    writer.close()
    sent = packets(blocks(file.content))
    assert [packet.data[33] & 0x07 for packet in sent] == [2, 2, 0, 1, 1, 0, 2, 2, 0]
    assert [time_ns(packet) - T0 for packet in sent[3:6]] == [1 if ended else 2] * 3


def test_a_reset_flow_ends_with_a_reset() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.end_flow("f", T0 + 1, reset=True)
    writer.close()
    assert packets(blocks(file.content))[-1].data[33] & 4


def test_what_cannot_be_kept_is_counted() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.data("nobody", True, b"x", T0)
    writer.end_flow("nobody", T0)
    writer.lost(3)
    writer.close()
    assert blocks(file.content)[-1].option(5) == [struct.pack("<Q", 4)]


def test_an_open_flow_is_not_opened_again_and_a_bad_endpoint_spoils_nothing() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.open_flow("f", WGET, LOCAL, REMOTE, T0)
    with pytest.raises(ValueError, match=r"origin\.test"):
        writer.open_flow("g", WGET, LOCAL, Endpoint(address="origin.test", port=1), T0, host="origin.test")
    writer.close()
    assert len(packets(blocks(file.content))) == 3


# --- when it is written -----------------------------------------------------------------------------------------------
def test_blocks_wait_until_the_oldest_is_half_a_second_old() -> None:
    file = io.BytesIO()
    writer = CaptureWriter(file)
    begun = len(file.getvalue())
    writer.tick(T0 - 9 * FLUSH_NS)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.data("f", True, b"x", T0 + FLUSH_NS - 1)
    assert len(file.getvalue()) == begun
    writer.tick(T0 + FLUSH_NS)
    assert len(packets(blocks(file.getvalue()))) == 5


def test_a_clock_that_was_set_back_delays_nothing() -> None:
    file = io.BytesIO()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.end_flow("f", T0)
    writer.tick(T0 - 3600 * 10**9)
    assert len(packets(blocks(file.getvalue()))) == 6


def test_much_data_is_written_at_once() -> None:
    file = io.BytesIO()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.data("f", True, bytes(FLUSH_BYTES), T0)
    assert len(file.getvalue()) > FLUSH_BYTES
    assert len(blocks(file.getvalue())) > 8


def test_secrets_that_come_a_moment_late_still_stand_before_the_waiting_packets() -> None:
    file = io.BytesIO()
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.flush()
    writer.data("f", True, b"hello", T0 + 1)
    writer.secrets(LINE + LINE)
    writer.secrets(b"nonsense\n" + LINE)
    writer.flush()
    found = [(block.kind, block.data) for block in blocks(file.getvalue())[6:8]]
    assert found == [(SECRETS, LINE + LINE), (SECRETS, LINE)]


# --- when it cannot be written ----------------------------------------------------------------------------------------
def flow_into(file: Any) -> CaptureWriter:
    writer = CaptureWriter(file)
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.flush()
    return writer


def test_a_full_disk_leaves_whole_blocks_and_every_later_call_says_so() -> None:
    """Whatever byte the disk is full at."""
    whole = Full(1 << 20)
    flow_into(whole)
    for room in range(len(whole.content) - 200, len(whole.content)):
        file = Full(room)
        with pytest.raises(CaptureFailed, match="No space left on device; the file ends with its last whole block"):
            flow_into(file)
        assert blocks(bytes(file.content))


def test_after_a_failure_nothing_more_is_written() -> None:
    file = Full(700)
    writer = CaptureWriter(file)  # type: ignore[arg-type]
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    with pytest.raises(CaptureFailed):
        writer.data("f", True, bytes(FLUSH_BYTES), T0)
    file.room = 1 << 30
    left = bytes(file.content)
    calls: list[Callable[[], None]] = [
        lambda: writer.data("f", True, b"x", T0),
        lambda: writer.open_flow("g", CURL, LOCAL, REMOTE, T0),
        lambda: writer.end_flow("f", T0),
        lambda: writer.secrets(LINE),
        lambda: writer.tick(T0),
        writer.flush,
    ]
    for call in calls:
        with pytest.raises(CaptureFailed, match="No space left"):
            call()
    writer.close()
    assert bytes(file.content) == left
    assert blocks(left)


def test_a_pipe_cannot_be_cut_back_and_the_error_says_so() -> None:
    file = Full(300, truncates=False)
    with pytest.raises(CaptureFailed, match="its last block is incomplete"):
        flow_into(file)


def test_a_reader_that_does_not_keep_up_is_a_failure_and_no_stall() -> None:
    """A pipe that nobody reads, opened without blocking."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        writer = flow_into(os.fdopen(writing, "wb", buffering=0))
        with pytest.raises(CaptureFailed, match="the reader does not keep up"):
            writer.data("f", True, bytes(16 << 20), T0)  # more than any pipe holds
        writer.close()
    finally:
        os.close(reading)


def test_a_reader_that_takes_nothing_for_a_while_is_a_failure_though_little_waits() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = flow_into(os.fdopen(writing, "wb", buffering=0))
    writer.data("f", True, bytes(1 << 20), T0)  # as much as waits without harm
    writer.tick(T0 + PATIENCE_NS)
    with pytest.raises(CaptureFailed, match="the reader does not keep up"):
        writer.tick(T0 + PATIENCE_NS + 1)
    writer.close()
    os.close(reading)


def test_a_reader_that_is_late_gets_everything_in_whole_blocks() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    writer = flow_into(os.fdopen(writing, "wb", buffering=0))
    said = [bytes((number,)) * 300_000 for number in range(4)]
    for number, data in enumerate(said):
        writer.data("f", True, data, T0 + number)
    left, now_ns = bytearray(), T0
    while not writer.finish():
        now_ns += PATIENCE_NS // 2  # slower than any bound, were it not for what it takes
        left += os.read(reading, 40_000)
        writer.tick(now_ns)
    writer.close()
    while piece := os.read(reading, 1 << 20):
        left += piece
    os.close(reading)
    found = [payload(packet) for packet in packets(blocks(bytes(left)))]
    assert b"".join(found).endswith(b"".join(said))


def test_an_end_that_nobody_takes_is_a_failure() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = flow_into(os.fdopen(writing, "wb", buffering=0))
    writer.data("f", True, bytes(1 << 20), T0)
    assert not writer.finish()
    with pytest.raises(CaptureFailed, match="the reader does not keep up; its last block is incomplete"):
        writer.close()
    os.close(reading)


@pytest.mark.parametrize("pieces", [-1, -(2**70), 2**70])
def test_a_count_of_lost_pieces_that_no_file_can_hold_is_held(pieces: int) -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.lost(3)
    writer.lost(pieces)
    writer.lost(pieces)
    writer.close()
    assert blocks(file.content)[-1].option(5) == [struct.pack("<Q", 3 if pieces < 0 else 2**63)]


def test_a_reader_that_has_gone_is_a_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as file, pytest.raises(CaptureFailed, match="Broken pipe"):
        CaptureWriter(file)


def test_a_buffered_file_keeps_nothing_back_and_begins_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    with path.open("wb") as file:
        file.write(b"head")
        flow_into(file)
        assert path.read_bytes()[:4] == b"head"
        assert len(packets(blocks(path.read_bytes()[4:]))) == 3


def test_a_file_that_cannot_be_closed_is_a_failure_and_closing_again_is_none() -> None:
    class Stubborn(Full):
        def close(self) -> None:
            super().close()
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    writer = flow_into(Stubborn(1 << 20))
    with pytest.raises(CaptureFailed, match="could not be closed: Disk quota exceeded"):
        writer.close()
    writer.close()


# --- as others read it ------------------------------------------------------------------------------------------------
@needs_tshark
def test_tshark_reads_flows_processes_names_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    writer = CaptureWriter(path.open("wb"), command="curl https://origin.test")
    content = os.urandom(300_000)
    for number, ends in enumerate(((LOCAL, REMOTE), (LOCAL6, REMOTE6), (LOCAL, REMOTE))):
        flow = f"f{number}"
        writer.open_flow(flow, CURL, *ends, T0 + number, "action: capture\nrule: Änderung", host="origin.test")
        writer.data(flow, True, b"GET", T0 + number)
        writer.data(flow, False, content, T0 + number)
        writer.end_flow(flow, T0 + number, reset=number == 2)
    writer.close()
    assert flaws(path) == []
    for number in range(3):  # the third has the first one's addresses and ports
        assert stream(path, number) == (b"GET", content)
    comments = [comment for [comment] in fields(path, "frame.comment", select="tcp.flags.syn==1 && tcp.flags.ack==0")]
    assert len(comments) == 3
    for said in ("process: /usr/bin/curl", "pid: 42", f"sha256: {'ab' * 32}", "rule: Änderung"):
        assert said in comments[0]
    assert fields(path, "frame.interface_description", select="frame.number==1") == [["curl https://origin.test"]]
    assert tshark(path, "-q", "-z", "hosts").count("origin.test") == 2
    as_file = tshark(path, "-X", "read_format:MIME Files Format", "-T", "fields", "-e", "pcapng.darwin.process_name")
    assert as_file.strip() == "curl"


@needs_tshark
def test_a_recorder_that_was_killed_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    writer = CaptureWriter(path.open("wb"))
    writer.open_flow("f", CURL, LOCAL, REMOTE, T0)
    writer.data("f", True, b"kept", T0 + 1)
    writer.tick(T0 + FLUSH_NS)
    writer.data("f", True, b"lost with the process", T0 + FLUSH_NS + 1)
    assert stream(path) == (b"kept", b"")


pieces = st.lists(st.tuples(st.sampled_from("fg"), st.booleans(), st.binary(max_size=30)), max_size=25)


@given(pieces, st.lists(st.integers(0, 24)))
def test_any_interleaving_of_flows_keeps_each_stream(seen: list[tuple[str, bool, bytes]], flushes: list[int]) -> None:
    file = Kept()
    writer = CaptureWriter(file)
    for number, flow in enumerate("fg"):
        writer.open_flow(flow, CURL, LOCAL, Endpoint.of("203.0.113.5", number), T0)
    for index, (flow, sent, data) in enumerate(seen):
        writer.data(flow, sent, data, T0 + index)
        if index in flushes:
            writer.flush()
    writer.close()
    for number, flow in enumerate("fg"):
        for sent, offset in ((True, 22), (False, 20)):
            port = struct.pack(">H", number)
            mine = [p for p in packets(blocks(file.content)) if p.data[offset : offset + 2] == port]
            expected = b"".join(data for known, side, data in seen if (known, side) == (flow, sent))
            assert b"".join(map(payload, mine)) == expected
