"""The ClientHello parser: real hellos, hostile ones, and every way to cut them."""

from __future__ import annotations

import hellos
import mitmproxy.tls
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.clienthello import HELLO_LIMIT_BYTES, ClientHello, Malformed, NeedMore, parse, parse_message

BIG = hellos.message(hellos.body([hellos.server_name(b"big.example"), (0x1234, bytes(20_000))]))


def parsed(data: bytes) -> ClientHello:
    outcome = parse(data)
    assert isinstance(outcome, ClientHello), outcome
    return outcome


def reason(data: bytes) -> str:
    outcome = parse(data)
    assert isinstance(outcome, Malformed), outcome
    return outcome.reason


@pytest.mark.parametrize(
    ("client", "sni", "alpn", "versions", "ja4"),
    [
        ("curl", "www.origin.example", ("h2", "http/1.1"), (0x304, 0x303, 0x302, 0x301), "t13d3112h2_e8f1e7e78f70_"),
        ("java", "java.origin.example", ("http/1.1",), (0x304, 0x303), "t13d3713h1_"),
        ("node", "node.origin.example", ("h2", "http/1.1"), (0x304, 0x303), "t13d5911h2_a33745022dd6_"),
        ("openssl-tls13", "login.bank.example", ("h2", "http/1.1"), (0x304, 0x303, 0x302, 0x301), "t13d3111h2_"),
        ("openssl-tls12-nameless", None, (), (0x303,), "t12i280600_"),
        ("python", "python.origin.example", (), (0x304, 0x303), "t13d181100_85036bcba153_"),
        ("python-address", None, (), (0x304, 0x303), "t13i181000_85036bcba153_"),
    ],
)
def test_real_clients_are_read(
    client: str, sni: str | None, alpn: tuple[str, ...], versions: tuple[int, ...], ja4: str
) -> None:
    found = parsed(hellos.REAL[client])
    assert (found.sni, found.alpn, found.versions) == (sni, alpn, versions)
    assert found.ja4.startswith(ja4)
    assert found.raw == hellos.REAL[client]
    assert not found.ech
    assert 29 in found.groups  # x25519, which every one of these clients offers
    assert 0xC02F in found.ciphers


GREASE = {0x0A0A + 0x1010 * number for number in range(16)}  # RFC 8701; no part of a JA4


@pytest.mark.parametrize("client", hellos.REAL)
def test_another_parser_reads_the_same(client: str) -> None:
    data = hellos.REAL[client]
    theirs = mitmproxy.tls.ClientHello(data[9:])
    ours = parsed(data)
    assert (ours.sni or theirs.sni) == (theirs.sni.lower() if theirs.sni else None)
    assert ours.alpn == tuple(name.decode() for name in theirs.alpn_protocols)
    assert ours.ciphers == tuple(theirs.cipher_suites)
    suites = [suite for suite in theirs.cipher_suites if suite not in GREASE]
    extensions = [kind for kind, _ in theirs.extensions if kind not in GREASE]
    assert ours.ja4[4:8] == f"{len(suites):02}{len(extensions):02}"


@pytest.mark.parametrize("client", hellos.REAL)
def test_every_prefix_of_a_real_hello_needs_more_and_says_how_much(client: str) -> None:
    data = hellos.REAL[client]
    for size in range(len(data)):
        outcome = parse(data[:size])
        assert isinstance(outcome, NeedMore)
        assert outcome.size_bytes is not None
        assert size < outcome.size_bytes <= len(data)


@given(st.sampled_from(sorted(hellos.REAL)), st.lists(st.integers(1, 400), max_size=12), st.binary(max_size=40))
def test_records_cut_anywhere_with_anything_after_give_the_same_hello(
    client: str, sizes: list[int], after: bytes
) -> None:
    whole = hellos.REAL[client]
    data = hellos.records(whole[5:], sizes)
    found = parsed(data + after)
    expected = parsed(whole)
    assert (found.sni, found.alpn, found.ja4, found.ciphers) == (
        expected.sni,
        expected.alpn,
        expected.ja4,
        expected.ciphers,
    )
    assert found.raw == data


@given(st.sampled_from(sorted(hellos.REAL)), st.lists(st.integers(1, 100), max_size=8))
def test_a_prefix_of_any_fragmentation_never_gives_another_answer(client: str, sizes: list[int]) -> None:
    data = hellos.records(hellos.REAL[client][5:], sizes)
    for size in range(len(data)):
        outcome = parse(data[:size])
        assert isinstance(outcome, NeedMore)
        assert outcome.size_bytes is not None
        assert size < outcome.size_bytes <= len(data)


@pytest.mark.checklist("C9")
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_have_one_of_three_outcomes_and_more_bytes_never_change_a_final_one(
    data: bytes, tls: bool
) -> None:
    data = (hellos.records(b"\x01\x00\x00\xc8" + data) if tls else b"") + data
    final = None
    for size in range(len(data) + 1):
        outcome = parse(data[:size])
        assert isinstance(outcome, ClientHello | NeedMore | Malformed)
        if final is not None:
            assert outcome == final
        elif not isinstance(outcome, NeedMore):
            final = outcome


@pytest.mark.checklist("C9")
@given(st.sampled_from(sorted(hellos.REAL)), st.integers(5, 600), st.integers(0, 255))
def test_a_real_hello_with_one_byte_changed_never_raises(client: str, at: int, byte: int) -> None:
    data = bytearray(hellos.REAL[client])
    data[at % len(data)] = byte
    assert isinstance(parse(bytes(data)), ClientHello | NeedMore | Malformed)


def test_a_hello_over_16_kib_in_two_records_is_read() -> None:
    data = hellos.records(BIG)
    found = parsed(data)
    assert found.sni == "big.example"
    assert len(found.raw) == len(data) == len(BIG) + 2 * 5


def test_the_size_needed_counts_the_next_record() -> None:
    data = hellos.records(BIG)
    first = parse(data[:100])
    assert first == NeedMore(size_bytes=5 + (1 << 14))
    second = parse(data[: 5 + (1 << 14) + 10])
    assert second == NeedMore(size_bytes=len(data))
    assert parse(b"") == NeedMore(size_bytes=6)


def test_bytes_behind_the_hello_in_its_own_record_are_left_alone() -> None:
    one = hellos.message(hellos.body())
    data = hellos.records(one + hellos.message(b"x", 2))
    assert parsed(data).raw == data[: 5 + len(one)]


def test_a_hello_without_extensions_is_read() -> None:
    found = parsed(hellos.records(hellos.message(hellos.body(None, version=0x0301))))
    assert (found.sni, found.versions, found.groups, found.ja4[:10]) == (None, (0x0301,), (), "t10i010000")


@pytest.mark.checklist("U33")
def test_grease_is_kept_and_ech_is_seen() -> None:
    versions = (0x2B, hellos.vector(hellos.numbers(0x2A2A, 0x0304), 1))
    groups = (0x0A, hellos.vector(hellos.numbers(0x1A1A, 29)))
    found = parsed(hellos.hello((0x3A3A, b""), versions, groups, (0xFE0D, b"\x00")))
    assert (found.versions, found.groups, found.ech) == ((0x2A2A, 0x0304), (0x1A1A, 29), True)
    assert found.ja4.startswith("t13i010300_")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"WWW.Example.COM", "www.example.com"),
        (b"example.com.", "example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"192.0.2.1", None),
        (b"2001:db8::1", None),
    ],
)
def test_server_names_become_comparable(written: bytes, read: str | None) -> None:
    assert parsed(hellos.hello(hellos.server_name(written))).sni == read


def test_alpn_names_keep_their_bytes() -> None:
    assert parsed(hellos.hello(hellos.alpn(b"h2", b"\xfa\x0a"))).alpn == ("h2", "\xfa\n")


@pytest.mark.checklist("C9")
@pytest.mark.parametrize(
    "name", [b"a\x00.example", b"", b"a b", "bücher.example".encode(), b"a..b", b"1.2.3", b"x:443"]
)
def test_a_server_name_that_is_none_is_malformed(name: bytes) -> None:
    assert reason(hellos.hello(hellos.server_name(name))) == "server name is not a host name"


LONG = b".".join([b"a" * 60] * 5)


@pytest.mark.checklist("C9")
@pytest.mark.parametrize(
    ("extension", "why"),
    [
        (hellos.server_name(b"a.example", kind=1), "server name is not a host name"),
        (hellos.server_name(LONG), "server name of 304 bytes"),
        (hellos.server_name(b"a." * 32_000), "server name of 64000 bytes"),
        ((0, hellos.vector(b"\x00\xff\xff" + b"a" * 60_000)), "server name ends early"),
        ((0, hellos.vector(b"\x00" + hellos.vector(b"a") + b"\x00" + hellos.vector(b"b"))), "server name has bytes"),
        ((0, b""), "server name ends early"),
        ((0, hellos.vector(b"\x00" + hellos.vector(b"a")) + b"x"), "server name has bytes left over"),
        ((0x10, hellos.vector(b"")), "ALPN with an empty name"),
        ((0x10, hellos.vector(b"\x00")), "ALPN with an empty name"),
        ((0x10, hellos.vector(b"\x05h2")), "ALPN ends early"),
        ((0x0A, hellos.vector(b"\x00")), "groups of 1 bytes"),
        ((0x0A, hellos.vector(b"\x00\x1d") + b"x"), "groups has bytes left over"),
        ((0x0D, hellos.vector(b"")), "signature algorithms of 0 bytes"),
        ((0x2B, b"\x04\x03\x04"), "supported versions ends early"),
    ],
)
def test_malformed_extensions(extension: hellos.Extension, why: str) -> None:
    assert reason(hellos.hello(extension)).startswith(why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "no TLS handshake record"),
        (b"\x80\x2e\x01\x03\x01", "no TLS handshake record"),  # SSL 2.0 format
        (b"\x16\x02", "no TLS record version"),
        (b"\x16\x03\x01\x00\x00", "record of 0 bytes"),
        (b"\x16\x03\x01\x40\x01", "record of 16385 bytes"),
        (b"\x16\x03\x01\x00\x04\x02", "handshake message 2 instead of a ClientHello"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "ClientHello of 0 bytes"),
        (b"\x16\x03\x01\x00\x04\x01\x01\x00\x01", "ClientHello of 65537 bytes"),
        (hellos.records(BIG[:50]) + b"\x17", "no TLS handshake record"),
        (hellos.records(hellos.message(hellos.body(version=0x0200))), "ClientHello of version 0x0200"),
        (hellos.records(hellos.message(b"\x03\x03")), "ClientHello ends early"),
        (hellos.records(hellos.message(hellos.body(session=bytes(33)))), "session id over 32 bytes"),
        (hellos.records(hellos.message(hellos.body(session=bytes(255)))), "session id over 32 bytes"),
        (hellos.records(hellos.message(b"\x03\x03" + bytes(32) + b"\xff" + bytes(16_384))), "session id over 32 bytes"),
        (hellos.records(hellos.message(hellos.body([], session=b"")[:34] + b"\xff")), "ClientHello ends early"),
        (hellos.records(hellos.message(hellos.body(ciphers=b""))), "cipher suites of 0 bytes"),
        (hellos.records(hellos.message(hellos.body(ciphers=b"\x13"))), "cipher suites of 1 bytes"),
        (hellos.records(hellos.message(hellos.body(compression=b""))), "no compression method"),
        (hellos.records(hellos.message(hellos.body() + b"x")), "ClientHello has bytes left over"),
        (hellos.hello((5, b""), (5, b"")), "extension 0x0005 twice"),
    ],
)
def test_what_no_continuation_could_repair_is_malformed(data: bytes, why: str) -> None:
    assert reason(data) == why


def test_the_limit_counts_record_headers_so_that_tiny_records_cannot_stretch_it() -> None:
    large = hellos.message(hellos.body([(0x1234, bytes(30_000))]))
    data = hellos.records(large, [1] * len(large))
    assert reason(data) == "hello over 64 KiB"
    assert reason(data[:HELLO_LIMIT_BYTES]) == "hello over 64 KiB"


@pytest.mark.checklist("C9")
def test_the_longest_server_name_that_extensions_can_hold_is_refused_by_the_first_bytes() -> None:
    """65,526 bytes: with them the extensions have all that their length can say, and the hello more than it may."""
    data = hellos.hello(hellos.server_name(b"a" * 65_526))
    assert reason(data) == reason(data[:9]) == "ClientHello of 65578 bytes"


@pytest.mark.checklist("C9")
def test_ten_thousand_extensions_hide_no_name_and_none_comes_twice() -> None:
    """All that there are but those with a meaning here, which could be no more than a hello's 64 KiB hold."""
    many = [(0x0100 + number, b"") for number in range(10_000)]
    found = parsed(hellos.hello(*many, hellos.server_name(b"www.example.com")))
    assert (found.sni, found.ja4[6:8]) == ("www.example.com", "99")
    assert reason(hellos.hello(*many, (0x0100 + 9_999, b""))) == "extension 0x280f twice"


def test_a_message_without_records_is_read_as_one_in_records() -> None:
    message = hellos.message(hellos.body([hellos.server_name(b"www.example.com"), hellos.alpn(b"h3")]))
    found, in_records = parse_message(message + b"more"), parsed(hellos.records(message))
    assert isinstance(found, ClientHello)
    assert (found.raw, found.ja4) == (message, "q" + in_records.ja4[1:])
    assert (found.sni, found.alpn, found.ciphers) == (in_records.sni, in_records.alpn, in_records.ciphers)
    for size in range(len(message)):
        assert parse_message(message[:size]) == NeedMore(size_bytes=4 if size < 4 else len(message))
    assert parse_message(b"\x02") == Malformed(reason="handshake message 2 instead of a ClientHello")


def test_an_extension_that_ends_within_its_header_is_malformed() -> None:
    message = hellos.message(hellos.body(None) + hellos.vector(bytes(3)))
    assert reason(hellos.records(message)) == "extension ends early"
