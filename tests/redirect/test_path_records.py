"""Where an executable lies, as bytes that nobody may trust."""

from __future__ import annotations

import os
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec_redirect import path_records
from mitmsec_redirect.path_records import PathState, parse_path

NAMES = st.lists(st.binary(min_size=1, max_size=40).filter(lambda name: not {0, ord("/")} & set(name)), min_size=1)


def value(state: int, names: bytes, length: int | None = None) -> bytes:
    head = struct.pack("=II", state, len(names) if length is None else length)
    return (head + names).ljust(path_records.VALUE_BYTES, b"\0")


@settings(deadline=None)
@given(NAMES)
def test_names_from_leaf_to_root_are_a_path_as_the_system_spells_it(names: list[bytes]) -> None:
    told = b"".join(name + b"\0" for name in names)[: path_records.TEXT_LIMIT]
    if told.endswith(b"\0"):
        path = parse_path(value(PathState.DONE | PathState.ROOTED, told))
        assert path is not None
        assert os.fsencode(path) == b"/" + b"/".join(reversed(told.split(b"\0")[:-1]))


def test_what_is_being_written_what_has_no_root_and_what_has_no_name_is_no_path() -> None:
    assert parse_path(value(0, b"sh\0bin\0")) is None
    assert parse_path(value(PathState.DONE, b"sh\0bin\0")) is None
    assert parse_path(value(PathState.DONE | PathState.ROOTED, b"")) is None
    assert parse_path(value(PathState.DONE | PathState.ROOTED, b"sh\0bi")) is None
    assert parse_path(value(PathState.DONE | PathState.ROOTED, b"sh\0bin\0")) == "/bin/sh"


@settings(deadline=None)
@given(st.binary(min_size=path_records.VALUE_BYTES, max_size=path_records.VALUE_BYTES))
def test_any_bytes_are_a_path_or_none(data: bytes) -> None:
    rooted = struct.pack("=I", PathState.DONE | PathState.ROOTED) + data[4:]
    for one in (data, rooted):
        path = parse_path(one)
        assert path is None or path.startswith("/")
