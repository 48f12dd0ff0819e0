"""Windows' tables of sockets are read as C lays them out, and no bytes raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows_structs import size_of, table_of

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.windows_rows import (
    CLOSED,
    EPOCH_1601_NS,
    LISTENING,
    TIME_WAIT,
    Kind,
    Malformed,
    OwnedSocket,
    parse,
    row_bytes,
)

ESTABLISHED = 5
SIZES = {  # as the declarations of tcpmib.h and udpmib.h give them on 64-bit Windows
    Kind.TCP4_PID: 24,
    Kind.TCP4_MODULE: 160,
    Kind.TCP6_PID: 56,
    Kind.TCP6_MODULE: 192,
    Kind.UDP4_PID: 12,
    Kind.UDP4_MODULE: 160,
    Kind.UDP6_PID: 28,
    Kind.UDP6_MODULE: 176,
}


@pytest.mark.parametrize("kind", Kind)
def test_a_row_is_as_large_as_its_declaration(kind: Kind) -> None:
    assert row_bytes(kind) == size_of(kind) == SIZES[kind]


@st.composite
def sockets(draw: st.DrawFn, kind: Kind) -> OwnedSocket:
    addresses = st.ip_addresses(v=6 if kind.is_v6 else 4).filter(lambda one: not getattr(one, "ipv4_mapped", None))
    ends = st.builds(Endpoint.of, addresses.map(str), st.integers(0, 0xFFFF))
    is_tcp = kind.transport is Transport.TCP
    state = draw(st.integers(1, 12)) if is_tcp else None
    return OwnedSocket(
        transport=kind.transport,
        local=draw(ends),
        remote=draw(ends) if is_tcp and state != LISTENING else None,
        pid=draw(st.none() | st.integers(1, 0xFFFFFFFF)),
        state=state,
        created_ns=draw(st.none() | st.integers(1, 10**16).map(lambda units: units * 100)) if kind.has_module else None,
    )


@given(st.data(), st.sampled_from(Kind), st.binary(max_size=40))
def test_what_is_in_a_table_is_read_and_what_lies_behind_it_is_not(
    data: st.DataObject, kind: Kind, spare: bytes
) -> None:
    told = data.draw(st.lists(sockets(kind), max_size=5))
    assert parse(kind, table_of(kind, told, spare)) == tuple(told)


@given(st.data(), st.sampled_from(Kind))
def test_a_table_that_is_cut_off_is_malformed(data: st.DataObject, kind: Kind) -> None:
    table = table_of(kind, data.draw(st.lists(sockets(kind), min_size=1, max_size=3)))
    assert isinstance(parse(kind, table[: data.draw(st.integers(0, len(table) - 1))]), Malformed)


@given(st.sampled_from(Kind), st.binary(max_size=500))
def test_no_bytes_raise(kind: Kind, table: bytes) -> None:
    found = parse(kind, table)
    assert found == parse(kind, bytearray(table)) == parse(kind, memoryview(table))
    assert isinstance(found, Malformed) or len(found) * row_bytes(kind) <= len(table)


def test_an_address_of_ipv4_in_ipv6_is_told_as_ipv4() -> None:
    mapped = "::ffff:192.0.2.1"
    table = bytearray(
        table_of(
            Kind.TCP6_MODULE,
            [
                OwnedSocket(
                    transport=Transport.TCP,
                    local=Endpoint(address=mapped, port=50000),
                    remote=Endpoint(address="2001:db8::1", port=443),
                    pid=4,
                    state=ESTABLISHED,
                    created_ns=None,
                )
            ],
        )
    )
    (one,) = parse(Kind.TCP6_MODULE, table)
    assert one.local == Endpoint.of("192.0.2.1", 50000)


def connection(state: int, created_ns: int | None = None) -> OwnedSocket:
    end = Endpoint.of("192.0.2.1", 443)
    return OwnedSocket(transport=Transport.TCP, local=end, remote=end, pid=4, state=state, created_ns=created_ns)


def test_a_time_before_1970_is_none() -> None:
    (one,) = parse(Kind.TCP4_MODULE, table_of(Kind.TCP4_MODULE, [connection(ESTABLISHED, 100 - EPOCH_1601_NS)]))
    assert one.created_ns is None


@pytest.mark.parametrize(("state", "is_connected"), [(ESTABLISHED, True), (TIME_WAIT, False), (CLOSED, False)])
def test_what_is_over_is_not_connected(state: int, is_connected: bool) -> None:
    (one,) = parse(Kind.TCP4_PID, table_of(Kind.TCP4_PID, [connection(state)]))
    assert one.is_connected is is_connected


def test_who_listens_is_connected_to_nobody() -> None:
    (one,) = parse(Kind.TCP4_PID, table_of(Kind.TCP4_PID, [connection(LISTENING)]))
    assert (one.remote, one.is_connected) == (None, False)
