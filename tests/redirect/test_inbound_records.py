"""What the kernel writes of a connection that came in is read back as it was."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.core.model import Caller, Endpoint
from mitmsec_redirect import inbound_records, records
from mitmsec_redirect.inbound_records import INBOUND, Inbound, InboundFlag, InboundKind, parse_inbound
from mitmsec_redirect.records import address_bytes

PORTS = st.integers(0, 0xFFFF)
WORDS, LONGS = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
CALLERS = st.builds(
    Caller,
    start_ns=st.integers(1, 2**64 - 1),
    parent=WORDS,
    parent_start_ns=LONGS,
    device=LONGS,
    inode=LONGS,
    ctime_ns=st.integers(0, 2**31 * 10**9),
)
INBOUNDS = st.builds(
    Inbound,
    kind=st.sampled_from(InboundKind),
    cookie=LONGS,
    netns=LONGS,
    local=st.builds(Endpoint.of, st.ip_addresses().map(str), PORTS),
    remote=st.builds(Endpoint.of, st.ip_addresses().map(str), PORTS),
    began_ns=LONGS,
    at_ns=LONGS,
    sent_bytes=LONGS,
    received_bytes=LONGS,
    error=WORDS,
    is_accepted=st.booleans(),
    pid=st.integers(1, 2**32 - 1),
    uid=WORDS,
    comm=st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=15),
    caller=CALLERS,
)


def written(one: Inbound, flags: InboundFlag = InboundFlag.SELECTED) -> bytes:
    """As the programs do."""
    caller = one.caller or Caller(start_ns=0)
    return INBOUND.pack(
        one.kind,
        flags | (InboundFlag.ACCEPTED if one.is_accepted else 0),
        one.cookie,
        one.netns,
        one.began_ns,
        one.at_ns,
        address_bytes(one.local.address),
        address_bytes(one.remote.address),
        one.local.port,
        int.from_bytes(one.remote.port.to_bytes(2, "big"), "little") << 16,
        one.sent_bytes,
        one.received_bytes,
        one.error,
        0,
        one.pid,
        one.uid,
        one.comm.encode(),
        caller.start_ns,
        caller.parent_start_ns,
        caller.parent,
        0,
        caller.device,
        caller.inode,
        *divmod(caller.ctime_ns, 10**9),
        0,
        bytes(16),
        0,
        0,
    )


@settings(deadline=None)  # the first example waits for the strategies to be built
@given(INBOUNDS)
def test_a_record_says_what_was_written(one: Inbound) -> None:
    assert parse_inbound(written(one)) == one


@given(st.binary(min_size=INBOUND.size - 4, max_size=INBOUND.size - 4), st.sampled_from(InboundKind))
def test_whatever_a_program_calls_itself_is_read(rest: bytes, kind: InboundKind) -> None:
    assert parse_inbound(kind.to_bytes(4, "little") + rest).kind is kind


def test_of_a_listener_that_nobody_saw_begin_no_caller_is_told() -> None:
    record = bytearray(INBOUND.size)
    record[0] = InboundKind.BEGAN
    told = parse_inbound(bytes(record))
    assert (told.pid, told.caller, told.is_accepted) == (0, None, False)


def test_who_called_is_written_as_in_an_attempt() -> None:
    names = ("STARTED", "PARENT_STARTED", "PARENT", "EXECUTABLE")
    ours, theirs = ([getattr(one, name) - one.STARTED for name in names] for one in (inbound_records, records))
    assert ours == theirs


def test_a_kind_that_there_is_not_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="InboundKind"):
        parse_inbound(b"\xff" + bytes(INBOUND.size - 1))


@pytest.mark.parametrize("also_v4", [True, False])
def test_a_listener_that_was_found_is_read_like_one_that_was_told(*, also_v4: bool) -> None:
    record = inbound_records.listener(
        cookie=7, netns=8, at_ns=9, local=bytes(16), port=80, pid=10, uid=11, comm="n" * 20, by_selected=True,
        also_v4=also_v4,
    )  # fmt: skip
    one = parse_inbound(record)
    assert (one.kind, one.cookie, one.netns, one.at_ns) == (InboundKind.LISTENS, 7, 8, 9)
    assert (one.local, one.pid, one.uid, one.comm) == (Endpoint.of("::", 80), 10, 11, "n" * 15)
    assert (one.by_selected, one.is_accepted, one.caller) == (True, False, None)
    port = struct.pack("=I", 80)
    all_of_v4 = (records.address_bytes("0.0.0.0") + port,) if also_v4 else ()
    assert inbound_records.served_keys(record) == (bytes(16) + port, *all_of_v4)
