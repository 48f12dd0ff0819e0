"""The bytes shared with the kernel programs, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core.model import Caller, Endpoint, Transport
from mitmsec_redirect import records
from mitmsec_redirect.records import AttemptFlag, Code, Reason

NOBODY = (0,) * 9


def attempt(
    remote: str,
    source: bytes = bytes(16),
    source_port: int = 0,
    flags: int = 0,
    code: int = 0,
    caller: tuple[int, ...] = NOBODY,
) -> bytes:
    return records.ATTEMPT.pack(
        records.address_bytes(remote),
        records.port_field(443),
        records.PROTOCOL_UDP if code == Code.QUIC_REFUSED else records.PROTOCOL_TCP,
        code,
        4242,
        1000,
        b"curl\0rubbish",
        source,
        source_port,
        flags,
        0,
        77,
        5,
        *caller,
    )


def test_an_origin_is_read() -> None:
    origin = records.parse_origin(attempt("203.0.113.9", records.address_bytes("10.0.0.1"), 0, 0))
    assert origin.remote == Endpoint(address="203.0.113.9", port=443)
    assert (origin.pid, origin.uid, origin.comm, origin.connected_ns) == (4242, 1000, "curl", 77)
    assert (origin.source, origin.bound) == ("10.0.0.1", None)


def test_an_origin_and_its_time_are_told_apart() -> None:
    value = attempt("203.0.113.9", records.address_bytes("10.0.0.1"), 0, 0)
    likewise, at_ns = records.timeless(value)
    assert at_ns == 77
    assert replace(records.parse_origin(likewise), connected_ns=77) == records.parse_origin(value)
    assert records.timeless(likewise) == (likewise, 0)


@pytest.mark.parametrize(
    ("remote", "source", "port", "flags", "bound"),
    [
        ("203.0.113.9", "10.0.0.1", 7, AttemptFlag.BOUND, Endpoint(address="10.0.0.1", port=7)),
        ("203.0.113.9", "10.0.0.1", 7, 0, Endpoint(address="0.0.0.0", port=7)),
        ("2001:db8::9", "fd77::1", 7, 0, Endpoint(address="::", port=7)),
        ("2001:db8::9", "fd77::1", 0, AttemptFlag.BOUND, Endpoint(address="fd77::1", port=0)),
    ],
)
def test_what_the_program_bound_is_told_apart_from_what_the_route_chose(
    remote: str, source: str, port: int, flags: int, bound: Endpoint
) -> None:
    assert records.parse_origin(attempt(remote, records.address_bytes(source), port, flags)).bound == bound


def test_an_unknown_source_is_none() -> None:
    assert records.parse_origin(attempt("203.0.113.9")).source is None


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.DIVERTED])
def test_a_missed_connection_is_read_with_its_reason(code: Code) -> None:
    missed = records.parse_missed(attempt("2001:db8::9", flags=AttemptFlag.DENIED, code=code))
    assert missed.reason is Reason[code.name]
    assert missed.denied
    assert missed.transport is (Transport.UDP if code is Code.QUIC_REFUSED else Transport.TCP)
    assert (missed.at_ns, missed.netns) == (77, 5)


def test_every_reason_has_a_code() -> None:
    assert {code.name for code in Code} - {"DIVERTED"} == {reason.name for reason in Reason}


@given(st.ip_addresses())
def test_addresses_come_back_as_they_went(address: object) -> None:
    endpoint = Endpoint.of(str(address), 1)
    assert records.address_text(records.address_bytes(str(address))) == endpoint.address


@given(st.integers(0, 0xFFFF))
def test_ports_come_back_as_they_went(port: int) -> None:
    assert records.port_field(records.port_field(port)) == port


def test_who_called_is_told_with_what_was_missed_and_with_what_was_diverted() -> None:
    value = attempt("203.0.113.9", code=Code.LINK_LOCAL, caller=(5_000_000_001, 4_000_000_002, 41, 0, 8, 9, 2, 3, 0))
    caller = Caller(5_000_000_001, 41, 4_000_000_002, device=8, inode=9, ctime_ns=2_000_000_003)
    assert records.parse_origin(value).caller == records.parse_missed(value).caller == caller


def test_a_program_that_does_not_know_the_kernels_types_tells_no_caller() -> None:
    value = attempt("203.0.113.9", code=Code.LINK_LOCAL)
    assert records.parse_origin(value).caller is records.parse_missed(value).caller is None
