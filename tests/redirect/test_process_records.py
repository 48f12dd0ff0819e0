"""Records as bytes: what the kernel writes is read, and whatever else there is has one error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect import process_records as records
from mitmsec_redirect.process_records import (
    EXECUTABLE,
    HEAD,
    TAIL,
    Executable,
    MalformedRecord,
    ProcessEnded,
    ProcessExecuted,
    ProcessStarted,
    RecordFlag,
    RecordKind,
    parse_process,
)

FILE = (259 << 20 | 3, 77, -5, 250)


def head(kind: int, flags: int = 0, file: tuple[int, int, int, int] = FILE) -> bytes:
    return HEAD.pack(kind, 7, 1, 8, 1000, flags, 30, 20, 10, 99, 4096 | 3, *file, 0, b"a\xffb\0rubbish")


def executed(path: bytes, name: bytes, flags: int = RecordFlag.ROOTED) -> bytes:
    return head(RecordKind.EXECUTED, flags) + TAIL.pack(4026, len(path), len(name), 0) + path + name


def test_the_layout_is_what_the_programs_write_to() -> None:
    assert HEAD.size == records.MOUNT_NAMESPACE
    assert HEAD.size + TAIL.size == records.TEXT
    assert EXECUTABLE.size == records.COMM - records.EXECUTABLE_AT
    assert EXECUTABLE.pack(*FILE, 0) == head(1)[records.EXECUTABLE_AT : records.COMM]


def test_a_start_is_read() -> None:
    event = parse_process(head(RecordKind.STARTED, RecordFlag.NO_ROOM))
    assert event == ProcessStarted(
        pid=7,
        started_ns=20,
        at_ns=30,
        parent=1,
        parent_started_ns=10,
        uid=1000,
        comm="a\N{REPLACEMENT CHARACTER}b",
        cgroup=99,
        entry=4099,
        no_room=True,
        forker=8,
        executable=Executable(device=FILE[0], inode=77, ctime_ns=-5 * 10**9 + 250),
    )


def test_an_execution_is_read() -> None:
    event = parse_process(executed(b"curl\0bin\0\xff\0", b"./curl\0"))
    assert isinstance(event, ProcessExecuted)
    assert (event.path, event.name, event.mount_namespace, event.thread) == ("/\udcff/bin/curl", "./curl", 4026, 8)


def test_an_end_is_read_and_says_nothing_of_a_file() -> None:
    event = parse_process(head(RecordKind.ENDED))
    assert isinstance(event, ProcessEnded)
    assert (event.pid, event.no_room) == (7, False)


@pytest.mark.parametrize("flags", [0, RecordFlag.CUT, RecordFlag.ROOTED | RecordFlag.CUT])
def test_half_a_path_is_no_path(flags: int) -> None:
    event = parse_process(executed(b"curl\0", b"", flags))
    assert isinstance(event, ProcessExecuted)
    assert event.path is None


def test_a_thread_of_the_kernel_has_no_file() -> None:
    event = parse_process(head(RecordKind.STARTED, file=(0, 0, 0, 0)))
    assert isinstance(event, ProcessStarted)
    assert event.executable is None


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1), st.integers(-(2**62), 2**62))
def test_a_file_has_the_key_that_the_kernel_looks_for(device: int, inode: int, ctime_ns: int) -> None:
    packed = Executable(device, inode, ctime_ns).key()
    record = head(RecordKind.STARTED)[: records.EXECUTABLE_AT] + packed + bytes(16)
    event = parse_process(record)
    assert isinstance(event, ProcessStarted)
    assert event.executable == Executable(device, inode, ctime_ns)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_malformed(data: bytes) -> None:
    for one in (data, head(RecordKind.EXECUTED, RecordFlag.ROOTED) + data):
        try:
            parse_process(one)
        except MalformedRecord:
            continue


@given(st.integers(0, 200))
def test_what_is_cut_off_is_malformed(length: int) -> None:
    whole = executed(b"curl\0", b"curl\0")
    if length < len(whole):
        with pytest.raises(MalformedRecord):
            parse_process(whole[:length])


def test_an_unknown_kind_is_malformed() -> None:
    with pytest.raises(MalformedRecord, match="9 is no kind"):
        parse_process(head(9))
