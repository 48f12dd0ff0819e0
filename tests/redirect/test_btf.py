"""Where members lie, by the kernel's own types; and nothing but the two errors for whatever else the bytes are."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

import pytest
from btf_writer import HEADER, BtfWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec_redirect import btf
from mitmsec_redirect.btf import Btf, Kind, MalformedBtf, Member, NoSuchMember

VMLINUX = Path("/sys/kernel/btf/vmlinux")
needs_vmlinux = pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF of its own")


def member(writer: BtfWriter, path: str, name: str = "outer") -> Member:
    return Btf(writer.bytes()).member(name, path)


# --- the real file ----------------------------------------------------------------------------------------------------
@needs_vmlinux
def test_the_running_kernels_types_answer_as_its_interfaces_do() -> None:
    """struct iovec and struct timespec64 are what user space knows them to be."""
    types = Btf(VMLINUX.read_bytes())
    assert types.member("iovec", "iov_len") == Member(offset=8, size=8)
    assert types.member("timespec64", "tv_nsec") == Member(offset=8, size=8)
    assert types.member("task_struct", "comm").size == 16
    assert types.member("dentry", "d_name.name").size == 8  # in an anonymous union since Linux 6.16
    assert types.member("mount", "mnt.mnt_root").offset == types.member("mount", "mnt").offset
    assert types.typedef_id("btf_trace_sched_process_exec") > 0


@needs_vmlinux
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("task_struct", "no_such_member"),
        ("no_such_struct", "pid"),
        ("task_struct", "mm.exe_file"),  # behind a pointer
        ("task_struct", "sched_reset_on_fork"),  # a bitfield
        ("task_struct", ""),
    ],
)
def test_what_has_no_answer_says_so(name: str, path: str) -> None:
    with pytest.raises(NoSuchMember, match=name):
        Btf(VMLINUX.read_bytes()).member(name, path)


@needs_vmlinux
def test_thirty_questions_to_the_whole_kernel_take_less_than_a_third_of_a_second() -> None:
    before = time.thread_time()
    types = Btf(VMLINUX.read_bytes())
    for _ in range(30):
        types.member("task_struct", "start_boottime")
    assert time.thread_time() - before < (
        0.33 if sys.gettrace() is None else 3
    )  # much of it is counting lines, if somebody does


# --- each way to write a member ---------------------------------------------------------------------------------------
def test_members_of_anonymous_structs_and_unions_are_the_outer_ones_own() -> None:
    w = BtfWriter()
    four = w.integer(4)
    innermost = w.struct("", 8, ("a", four, 0), ("b", four, 32))
    union = w.struct("", 8, ("c", four, 0), ("", innermost, 0), kind=Kind.UNION)
    w.struct("outer", 16, ("first", four, 0), ("", four, 32), ("", union, 64))
    assert member(w, "b") == Member(offset=12, size=4)
    assert member(w, "c") == Member(offset=8, size=4)
    with pytest.raises(NoSuchMember):
        member(w, "d")


def test_sizes_are_those_of_what_stands_behind_names_and_qualifiers() -> None:
    w = BtfWriter()
    two = w.integer(2)
    constant = w.add(Kind.CONST, "", two)
    named = w.add(Kind.TYPEDEF, "name", constant)
    table = w.array(w.array(named, 3), 5)
    pointers = w.array(w.pointer(999), 4)
    choice = w.add(Kind.ENUM, "choice", 4, 0, 1, count=1)
    wide = w.add(Kind.ENUM64, "wide", 8, 0, 1, 2, count=1)
    real = w.add(Kind.FLOAT, "double", 8)
    inner = w.struct("inner", 6, ("x", two, 32))
    members = [table, pointers, choice, wide, real, inner]
    w.struct("outer", 999, *((f"m{index}", type_id, index * 512) for index, type_id in enumerate(members)))
    assert [member(w, f"m{index}").size for index in range(6)] == [30, 32, 4, 8, 8, 6]
    assert member(w, "m5.x") == Member(offset=5 * 64 + 4, size=2)


@pytest.mark.parametrize("new_way", [True, False])
def test_bitfields_are_refused(new_way: bool) -> None:
    w = BtfWriter()
    four = w.integer(4)
    if new_way:
        w.struct("outer", 8, ("plain", four, 0), ("bits", four, 3 << 24 | 32), flag=True)
    else:
        w.struct("outer", 8, ("plain", four, 0), ("bits", w.integer(4, bits=3), 32), ("later", w.integer(4, bit=8), 32))
    assert member(w, "plain") == Member(offset=0, size=4)
    with pytest.raises(NoSuchMember):
        member(w, "bits")
    if not new_way:
        with pytest.raises(NoSuchMember):
            member(w, "later")


def test_two_structs_of_one_name_must_agree() -> None:
    w = BtfWriter()
    four = w.integer(4)
    w.struct("outer", 8, ("same", four, 0), ("moved", four, 32))
    w.struct("outer", 16, ("same", four, 0), ("moved", four, 64))
    assert member(w, "same") == Member(offset=0, size=4)
    with pytest.raises(NoSuchMember, match="ambiguous"):
        member(w, "moved")


def test_a_name_is_never_the_end_of_another() -> None:
    w = BtfWriter()
    four = w.integer(4)
    w.struct("outer", 8, ("pid", four, 0), ("tgid", four, 32))
    with pytest.raises(NoSuchMember):
        member(w, "id")


def test_type_definitions_are_found_if_there_is_one() -> None:
    w = BtfWriter()
    four = w.integer(4)
    once = w.add(Kind.TYPEDEF, "once", four)
    w.add(Kind.TYPEDEF, "twice", four)
    w.add(Kind.TYPEDEF, "twice", four)
    w.struct("outer", 4)
    types = Btf(w.bytes())
    assert types.typedef_id("once") == once
    for name in ("twice", "outer", "none"):
        with pytest.raises(NoSuchMember, match=name):
            types.typedef_id(name)


@pytest.mark.parametrize(
    ("kind", "more", "count"),
    [(Kind.FUNC_PROTO, 4, 2), (Kind.DATASEC, 6, 2), (Kind.VAR, 1, 0), (Kind.DECL_TAG, 1, 0), (Kind.FWD, 0, 0)],
)
def test_types_of_other_kinds_are_stepped_over(kind: Kind, more: int, count: int) -> None:
    w = BtfWriter()
    w.add(kind, "other", 0, *range(more), count=count)
    four = w.integer(4)
    w.struct("outer", 8, ("x", four, 0), ("y", four, 32))
    assert member(w, "y") == Member(offset=4, size=4)


# --- hostile bytes ----------------------------------------------------------------------------------------------------
def whole() -> BtfWriter:
    w = BtfWriter()
    four = w.integer(4)
    union = w.struct("", 4, ("b", four, 0), ("c", w.array(four, 2), 0), kind=Kind.UNION)
    w.struct("outer", 16, ("a", w.add(Kind.TYPEDEF, "t", four), 0), ("", union, 32), ("d", w.pointer(), 64))
    return w


def ask(data: bytes) -> None:
    """All that is asked may fail in two ways only."""
    try:
        types = Btf(data)
    except MalformedBtf:
        return
    for path in ("a", "b", "c", "d", "a.b", "b.c"):
        try:
            found = types.member("outer", path)
        except (MalformedBtf, NoSuchMember):
            continue
        assert 0 <= found.offset < 1 << 32
        assert 0 <= found.size < 1 << 64


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed_or_answered(data: bytes) -> None:
    ask(data)
    ask(HEADER.pack(0xEB9F, 1, 0, HEADER.size, 0, max(len(data) - 8, 0) & ~3, len(data), 0) + data + b"\0")


@settings(max_examples=500)
@given(st.data())
def test_any_word_changed_is_malformed_or_answered(data: st.DataObject) -> None:
    good = bytearray(whole().bytes())
    at = data.draw(st.integers(0, len(good) // 4 - 1)) * 4
    small, any_word = st.integers(0, 20), st.integers(0, 2**32 - 1)
    struct.pack_into("=I", good, at, data.draw(st.one_of(small, any_word, small.map(lambda kind: kind << 24))))
    ask(bytes(good))


@given(st.integers(0, 400))
def test_cut_off_anywhere_it_is_malformed(length: int) -> None:
    good = whole().bytes()
    if length < len(good):
        with pytest.raises(MalformedBtf):
            Btf(good[:length])


def test_another_byte_order_is_told() -> None:
    with pytest.raises(MalformedBtf, match="endian"):
        Btf(whole().bytes()[:2][::-1] + whole().bytes()[2:])


def test_an_unknown_kind_is_told() -> None:
    for kind in (0, 20, 31):
        w = BtfWriter()
        w.add(kind, "new", 0)
        with pytest.raises(MalformedBtf, match="unknown kind"):
            Btf(w.bytes())


def test_members_that_are_not_there_are_told() -> None:
    w = BtfWriter()
    w.add(Kind.STRUCT, "outer", 4, count=7)
    with pytest.raises(MalformedBtf, match="cut off"):
        Btf(w.bytes())
    w.types = w.types[:4]
    with pytest.raises(MalformedBtf, match="cut off"):
        Btf(w.bytes())


def test_strings_end() -> None:
    good = whole().bytes()
    with pytest.raises(MalformedBtf, match="strings"):
        Btf(good[:-1] + b"x")


def test_what_refers_to_itself_ends() -> None:
    w = BtfWriter()
    w.add(Kind.TYPEDEF, "loop", 1)
    w.struct("outer", 4, ("x", 1, 0), ("", 2, 0), ("", 2, 0), ("array", 3, 0), ("void", 0, 0), ("nothing", 99, 0))
    w.array(3, 1)
    for path, why in [
        ("x", "does not end"),
        ("y", "too deep"),
        ("array", "too large"),
        ("void", "VOID"),
        ("nothing", "no type 99"),
    ]:
        with pytest.raises(MalformedBtf, match=why):
            member(w, path)


def test_a_struct_within_itself_ends() -> None:
    w = BtfWriter()
    w.struct("outer", 4, ("", 1, 0))
    with pytest.raises(MalformedBtf, match="too deep"):
        member(w, "x")


def test_doubling_at_each_level_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf, "MEMBERS_LIMIT", 1000)
    w = BtfWriter()
    w.struct("outer", 4, ("", 2, 0))
    for level in range(2, 16):
        w.struct("", 4, ("", level + 1, 0), ("", level + 1, 0))
    w.struct("", 4)
    with pytest.raises(MalformedBtf, match="too many"):
        member(w, "x")


def test_an_array_larger_than_memory_is_told() -> None:
    w = BtfWriter()
    huge = w.array(w.integer(4), 1 << 31)
    w.struct("outer", 4, ("x", w.array(huge, 1 << 31), 0))
    with pytest.raises(MalformedBtf, match="too large"):
        member(w, "x")


def test_a_bit_is_found_where_it_lies() -> None:
    w = BtfWriter()
    byte = w.integer(1)
    inner = w.struct("", 1, ("wide", byte, 3 << 24 | 0), ("single", byte, 1 << 24 | 5), flag=True)
    w.struct("outer", 8, ("plain", byte, 0), ("", inner, 16), flag=True)
    types = Btf(w.bytes())
    assert types.bit("outer", "single") == 21
    for name in ("wide", "plain", "missing"):
        with pytest.raises(NoSuchMember, match=f"no bit {name}"):
            types.bit("outer", name)
    with pytest.raises(NoSuchMember):
        types.bit("other", "single")
