"""Records of UDP flows against bytes written by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Direction, Endpoint
from mitmsec_redirect import records
from mitmsec_redirect.udp_records import (
    COUNTS,
    FLOW,
    KEY,
    RELEASED,
    Counts,
    FlowFlag,
    SocketReleased,
    UdpFlow,
    What,
    is_flow,
    parse_counts,
    parse_record,
)


def attempt(remote: str, port: int, *, source: bytes = bytes(16), source_port: int = 0, flags: int = 0) -> bytes:
    who = (0, 0, 0, 0, 0, 0, 0, 0, 0)
    where = (records.address_bytes(remote), records.port_field(port), records.PROTOCOL_UDP, 0)
    return records.ATTEMPT.pack(*where, 42, 1000, b"dig", source, source_port, flags, 0, 77, 5, *who)


def flow(what: What, remote: str, port: int, **more: int | bytes) -> UdpFlow:
    parsed = parse_record(FLOW.pack(9, what, 0, attempt(remote, port, **more)))  # type: ignore[arg-type]
    assert isinstance(parsed, UdpFlow)
    return parsed


def test_a_flow_has_its_socket_its_ends_and_who_called() -> None:
    parsed = flow(What.SENT, "203.0.113.9", 53, source_port=4000)
    assert parsed.socket_cookie == 9
    assert (parsed.remote, parsed.local) == (Endpoint.of("203.0.113.9", 53), Endpoint.of("0.0.0.0", 4000))
    assert (parsed.pid, parsed.uid, parsed.comm, parsed.at_ns) == (42, 1000, "dig", 77)
    assert (parsed.caller, parsed.selected, parsed.connected) == (None, False, False)


def test_a_socket_without_an_address_yet_has_none_of_the_remotes_family() -> None:
    assert flow(What.CONNECTED, "2001:db8::9", 53).local == Endpoint.of("::", 0)
    assert flow(What.CONNECTED, "203.0.113.9", 53).local == Endpoint.of("0.0.0.0", 0)


def test_what_was_bound_is_told() -> None:
    source = records.address_bytes("10.77.0.1")
    bound = flow(What.SENT, "203.0.113.9", 53, source=source, source_port=7, flags=records.AttemptFlag.BOUND)
    assert bound.local == Endpoint.of("10.77.0.1", 7)


def test_who_spoke_first_gives_the_direction() -> None:
    assert flow(What.RECEIVED, "203.0.113.9", 5).direction is Direction.INBOUND
    assert flow(What.SENT, "203.0.113.9", 5).direction is Direction.OUTBOUND
    connected = flow(What.CONNECTED, "203.0.113.9", 5)
    assert (connected.direction, connected.connected) == (Direction.OUTBOUND, True)


def test_the_verdict_at_the_call_is_kept() -> None:
    assert flow(What.SENT, "203.0.113.9", 5, flags=records.AttemptFlag.SELECTED).selected


def test_a_closed_socket_is_told_by_its_cookie() -> None:
    record = RELEASED.pack(9, What.RELEASED, 0, 123)
    assert not is_flow(record)
    assert parse_record(record) == SocketReleased(9, 123)


def test_counts_say_whether_they_are_all() -> None:
    assert parse_counts(COUNTS.pack(3, 2, 99, 0)) == Counts(3, 2, 99, connected=False)
    assert parse_counts(COUNTS.pack(0, 0, 99, FlowFlag.CONNECTED)).connected


@given(st.integers(0, 2**64 - 1), st.ip_addresses(), st.integers(0, 65535))
def test_the_key_is_what_the_program_looks_up(cookie: int, address: object, port: int) -> None:
    remote = Endpoint.of(str(address), port)
    record = FLOW.pack(cookie, What.SENT, 0, attempt(remote.address, port))
    parsed = parse_record(record)
    assert isinstance(parsed, UdpFlow)
    assert is_flow(record)
    written = records.address_bytes(remote.address)
    assert parsed.key == KEY.pack(cookie, written, records.port_field(port), 0)
