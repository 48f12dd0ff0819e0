"""DNS messages read: what resolvers send, what nobody should, and any bytes at all."""

from __future__ import annotations

import struct

import pytest
from dns_writer import AAAA, HTTPS, POINTER_TO_QUESTION, TXT, Record, address, alias, query, response, service, wire
from hypothesis import example, given
from hypothesis import strategies as st

from mitmsec.core import dns
from mitmsec.core.dns import Address, DnsMessage, Malformed, NeedMore, parse


def read(data: bytes) -> DnsMessage:
    message = parse(data)
    assert isinstance(message, DnsMessage), message
    return message


def addresses(data: bytes) -> list[tuple[str, int]]:
    return [(one.address, one.ttl_s) for one in read(data).addresses]


def why(data: bytes) -> str:
    broken = parse(data)
    assert isinstance(broken, Malformed), broken
    return broken.reason


def test_a_query_has_a_name_a_type_and_an_id() -> None:
    message = read(query("WWW.Example.com", AAAA, 4711))
    assert (message.id, message.is_response, message.kind, message.name) == (4711, False, AAAA, "www.example.com")
    assert message.wire_name == b"\x03www\x07example\x03com\x00"
    assert message.addresses == ()


def test_a_response_gives_the_addresses_of_the_name() -> None:
    data = response("a.test", address(POINTER_TO_QUESTION, "192.0.2.1", 60), address("A.TEST", "192.0.2.2"))
    assert read(data).is_response
    assert addresses(data) == [("192.0.2.1", 60), ("192.0.2.2", 300)]
    assert addresses(response("a.test", address("a.test", "2001:db8::1"), kind=AAAA)) == [("2001:db8::1", 300)]


def test_aliases_lead_to_addresses_whatever_their_order_and_the_least_time_to_live_counts() -> None:
    records = [alias("a.test", "b.test", 50), alias("b.test", "c.test", 90), address("c.test", "192.0.2.1", 70)]
    for order in (records, records[::-1], records[1:] + records[:1]):
        assert addresses(response("a.test", *order)) == [("192.0.2.1", 50)]


def test_the_address_of_another_name_is_none_of_this_ones() -> None:
    assert addresses(response("a.test", address("b.test", "192.0.2.1"), alias("c.test", "b.test"))) == []


def test_aliases_that_go_in_circles_or_on_and_on_come_to_an_end() -> None:
    circle = [alias("a.test", "b.test"), alias("b.test", "a.test"), address("b.test", "192.0.2.1")]
    assert addresses(response("a.test", *circle)) == [("192.0.2.1", 300)]
    endless = [alias(f"{number}.test", f"{number + 1}.test") for number in range(40)]
    reached = [address(f"{number}.test", f"192.0.2.{number}") for number in range(40)]
    assert len(addresses(response("0.test", *endless, *reached))) == dns.CHAIN_LIMIT


def test_a_service_record_hints_at_addresses() -> None:
    data = response("a.test", service("a.test", v4=["192.0.2.1", "192.0.2.2"], v6=["2001:db8::1"]), kind=HTTPS)
    assert [one for one, _ in addresses(data)] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    named = response("a.test", service("a.test", "long.name.test", v4=["192.0.2.1"]), kind=HTTPS)
    assert [one for one, _ in addresses(named)] == ["192.0.2.1"]


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0\1\0", b"\0\1\0\0\4\0\3abc", b"\0\1\0\0\4\0\x08abcd", b"\0\1\xc0\0", b"\0\1" + b"\x3f" * 9]
)
def test_a_service_record_that_is_broken_hints_at_nothing(data: bytes) -> None:
    assert addresses(response("a.test", Record("a.test", HTTPS, data), kind=HTTPS)) == []


def test_other_types_and_classes_are_passed_over() -> None:
    records = [
        Record("a.test", TXT, b"\x02hi"),
        Record("a.test", 1, b"\x7f\0\0\1", of=3),
        address("a.test", "192.0.2.1"),
    ]
    assert addresses(response("a.test", *records)) == [("192.0.2.1", 300)]


def test_a_v4_mapped_answer_is_ipv4_and_a_negative_time_to_live_none() -> None:
    assert addresses(response("a.test", address("a.test", "::ffff:192.0.2.1", 2**31))) == [("192.0.2.1", 0)]


def test_flags_are_told() -> None:
    assert read(response("a.test", flags=0x8383)).rcode == 3
    assert read(response("a.test", flags=0x8380)).truncated
    assert not read(response("a.test")).truncated


def test_no_more_addresses_are_kept_than_a_bound() -> None:
    many = [address("a.test", f"192.0.{number >> 8}.{number & 255}") for number in range(100)]
    assert len(addresses(response("a.test", *many))) == dns.ADDRESSES_LIMIT


def test_what_is_not_kept_is_not_read_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TCP a record holds a thousand: to read them all would take its reader many times as long as over UDP."""
    read_so_far: list[bytes] = []
    read_one = dns._address

    def counted(packed: bytes) -> str:
        read_so_far.append(packed)
        return read_one(packed)

    monkeypatch.setattr(dns, "_address", counted)
    many = service("a.test", v6=[f"2001:db8::{number:x}" for number in range(1000)])
    assert len(addresses(response("a.test", many, many, kind=HTTPS))) == dns.ADDRESSES_LIMIT
    assert len(read_so_far) <= dns.ADDRESSES_LIMIT + 1


@pytest.mark.parametrize(
    ("name", "comparable"), [("a_b.test", "a_b.test"), ("", None), ("1.2.3.4", None), ("a b.test", None)], ids=str
)
def test_only_a_hosts_name_is_comparable(name: str, comparable: str | None) -> None:
    assert read(query(name)).name == comparable


def test_a_label_with_a_dot_in_it_is_no_hosts_name() -> None:
    data = bytearray(query("bank-example.test"))
    data[17] = ord(".")
    assert read(bytes(data)).name is None
    assert read(bytes(data)).wire_name.startswith(b"\x0cbank.example")


# --- what cannot be ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("!HHHHHH", 7, 0x2900, 1, 0, 0, 0), "not a standard query"),
        (struct.pack("!HHHHHH", 7, 0, 0, 0, 0, 0), "0 questions"),
        (struct.pack("!HHHHHH", 7, 0, 2, 0, 0, 0), "2 questions"),
        (struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\0\0\1\0\3", "class 3"),
        (struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c", "a name that points forwards"),
        (struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\xc0\x00", "a name that points forwards"),
        (struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\x40", "an unknown kind of label"),
        (struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4, "a name of more than 255 bytes"),
        (response("a.test", Record("a.test", 1, b"123")), "an address of another length"),
        (response("a.test", Record("a.test", 28, b"1234")), "an address of another length"),
        (response("a.test", alias("a.test", b"")), "an alias that is no name"),
        (response("a.test", alias("a.test", b"\x09a")), "an alias that is no name"),
        (response("a.test", alias("a.test", wire("b.test") + b"x")), "an alias that is no name"),
        (response("a.test", address(b"\xff\xff", "192.0.2.1")), "a name that points forwards"),
    ],
)
def test_what_cannot_be_a_message_is_malformed_and_says_why(data: bytes, reason: str) -> None:
    assert why(data) == reason


def test_pointers_that_lead_to_each_other_come_to_an_end() -> None:
    """The alias points back into the owner, which points back to the question: legal. One step forward: not."""
    start = len(response("a.test"))
    owner, there = b"\x01b\xc0\x0c", (0xC000 | start).to_bytes(2)
    assert (
        addresses(response("a.test", alias("a.test", b"\x01x" + POINTER_TO_QUESTION), address(owner, "192.0.2.1")))
        == []
    )
    assert why(response("a.test", alias(there, "b.test"))) == "a name that points forwards"


# --- any bytes --------------------------------------------------------------------------------------------------------
LABELS = st.text(st.sampled_from("abcXYZ-_09"), min_size=1, max_size=63)
NAMES = st.lists(LABELS, min_size=0, max_size=5).map(".".join).filter(lambda name: len(name) <= 250)
OWNERS = NAMES | st.just(POINTER_TO_QUESTION) | st.binary(max_size=4)
RECORDS = st.one_of(
    st.builds(address, OWNERS, st.ip_addresses().map(str), st.integers(0, 2**32 - 1)),
    st.builds(alias, OWNERS, OWNERS),
    st.builds(Record, OWNERS, st.integers(0, 70), st.binary(max_size=40)),
)
MESSAGES = st.one_of(
    st.builds(query, NAMES),
    st.builds(lambda name, records: response(name, *records), NAMES, st.lists(RECORDS, max_size=6)),
    st.binary(max_size=80),
)


@given(MESSAGES, st.data())
@example(response("a.test", alias("a.test", "b.test"), address("b.test", "192.0.2.1")), None)
def test_more_bytes_never_change_an_answer(data: bytes, choose: st.DataObject | None) -> None:
    whole = parse(data)
    cuts = range(len(data)) if choose is None else [choose.draw(st.integers(0, len(data)))]
    for cut in cuts:
        part = parse(data[:cut])
        if isinstance(part, NeedMore):
            assert part.size_bytes is not None
            assert part.size_bytes > cut
        else:
            assert part == whole


@given(NAMES, st.lists(st.ip_addresses().map(str), max_size=9), st.integers(0, 2**31 - 1))
def test_what_is_written_is_read(name: str, texts: list[str], ttl_s: int) -> None:
    message = read(response(name, *(address(name, text, ttl_s) for text in texts)))
    assert message.wire_name == wire(name.lower())
    expected = [address("", text) for text in texts]
    assert [one.ttl_s for one in message.addresses] == [ttl_s] * len(expected)
    assert all(isinstance(one, Address) for one in message.addresses)


@given(st.binary(max_size=1600))
def test_any_bytes_have_one_of_three_outcomes(data: bytes) -> None:
    message = parse(data)
    assert isinstance(message, DnsMessage | NeedMore | Malformed)
    if isinstance(message, DnsMessage):
        assert len(message.wire_name) <= dns.NAME_LIMIT_BYTES
        assert len(message.addresses) <= dns.ADDRESSES_LIMIT


def test_a_message_of_names_without_end_is_none() -> None:
    """A hundred answers that each send their reader over a name of a hundred labels."""
    name = b"".join(b"\x01a" for _ in range(100)) + b"\0"
    pointer = b"\xc0\x0c"
    answers = 100
    head = (1).to_bytes(2) + b"\x81\x80" + (1).to_bytes(2) + answers.to_bytes(2) + bytes(4)
    alias = pointer + b"\0\x05\0\x01" + bytes(4) + b"\0\x02" + pointer
    found = parse(head + name + b"\0\x01\0\x01" + alias * answers)
    assert found == Malformed(reason="names without end")
