"""Services are read out of the system's buffer as C lays them, and no bytes of it are too much."""

from __future__ import annotations

import ctypes

from hypothesis import given
from hypothesis import strategies as st
from windows_structs import services_of

from mitmsec_redirect.windows_rows import Malformed
from mitmsec_redirect.windows_service_rows import ROW, RunningService, parse_services, services_by_pid

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)
SERVICES = st.lists(st.builds(RunningService, name=NAMES, pid=st.integers(0, 2**32 - 1)), max_size=6)


@given(SERVICES)
def test_services_come_back_but_for_those_without_a_process(services: list[RunningService]) -> None:
    buffer = services_of([(one.name, one.pid) for one in services])
    found = parse_services(buffer.raw, ctypes.addressof(buffer), len(services))
    assert found == tuple(one for one in services if one.pid)


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_no_bytes_raise(buffer: bytes, base: int, count: int) -> None:
    found = parse_services(buffer, base, count)
    assert isinstance(found, Malformed) or len(found) <= count


@given(SERVICES, st.data())
def test_a_buffer_that_is_cut_is_malformed_or_reads_the_same(
    services: list[RunningService], data: st.DataObject
) -> None:
    buffer = services_of([(one.name, one.pid) for one in services])
    whole, base = parse_services(buffer.raw, ctypes.addressof(buffer), len(services)), ctypes.addressof(buffer)
    cut = parse_services(buffer.raw[: data.draw(st.integers(0, len(buffer)))], base, len(services))
    assert isinstance(cut, Malformed) or cut == whole


def test_what_does_not_fit_says_why() -> None:
    assert parse_services(bytes(100), 0, 2) == Malformed(reason="2 services promised in 100 bytes")
    before, unended = ROW.pack(99, 0, *[0] * 9), ROW.pack(100 + ROW.size, 0, *[0] * 9) + b"aa"
    elsewhere = Malformed(reason="a service's name lies elsewhere")
    assert parse_services(before, 100, 1) == elsewhere
    assert parse_services(unended, 100, 1) == elsewhere


def test_a_process_has_all_of_its_services() -> None:
    rows = (RunningService(name="b", pid=7), RunningService(name="c", pid=8), RunningService(name="a", pid=7))
    assert services_by_pid(rows) == {7: ("a", "b"), 8: ("c",)}
