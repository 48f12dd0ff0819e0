"""What a client says to a proxy until there is a tunnel, and what it does not get one for."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_upgrade import HELLO, SERVER_HELLO, Turn, cut, named, played

from mitmsec.core.clienthello import Malformed
from mitmsec.core.httphead import HEAD_LIMIT_BYTES
from mitmsec.core.sniff import TUNNELS, Protocol
from mitmsec.core.tunnel import ANOTHER, SOCKS_LIMIT_BYTES, Connect, Socks
from mitmsec.core.upgrade import Step, recogniser
from mitmsec.core.upgrade_step import NO_ANSWER, NOT_ALONE, NOT_SEEN

CONNECT = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"
NO = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\n"
YES = b"HTTP/1.0 200 Connection established\r\n\r\n"
REQUEST, REPLY = b"\x05\x01\x00\x03\x06a.test\x01\xbb", b"\x05\x00\x00\x01\0\0\0\0\0\0"
REQUEST_4, REPLY_4 = b"\x04\x01\x01\xbb\xc0\x00\x02\x01joe\0", b"\x00\x5a" + bytes(6)
PROXY, SOCKS = Protocol.HTTP_PROXY, Protocol.SOCKS
OPENED: list[tuple[Protocol, list[Turn]]] = [
    (PROXY, [("c", CONNECT), ("s", YES)]),
    (PROXY, [("c", b"\r\n" + CONNECT), ("s", NO + b"sorry!"), ("c", CONNECT), ("s", b"HTTP/1.1 200\n\n")]),
    (PROXY, [("c", CONNECT), ("s", NO), ("s", b"sorry!"), ("c", CONNECT), ("s", b"HTTP/1.1 103 x\r\n\r\n" + YES)]),
    (SOCKS, [("c", b"\x05\x01\x00"), ("s", b"\x05\x00"), ("c", REQUEST), ("s", REPLY)]),
    (SOCKS, [("c", b"\x05\x02\x00\x02"), ("s", b"\x05\x02"), ("c", b"\x01\x03joe\x02pw"), ("s", b"\x01\x00"),
             ("c", b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"), ("s", b"\x05\x00\x00\x03\x01a\0\0")]),
    (SOCKS, [("c", b"\x05\x01\x00" + REQUEST), ("s", b"\x05\x00" + REPLY)]),  # it does not wait for the method
    (SOCKS, [("c", b"\x05\x01\x00"), ("s", b"\x05\x00"), ("c", b"\x05\x01\x00\x04" + bytes(18)),
             ("s", b"\x05\x00\x00\x04" + bytes(18))]),
    (SOCKS, [("c", REQUEST_4), ("s", REPLY_4)]),
    (SOCKS, [("c", b"\x04\x01\x01\xbb\0\0\0\x01\0a.test\0"), ("s", REPLY_4)]),
    (SOCKS, [("c", b"\x04\x01\x01\xbb\0\0\0\0\0"), ("s", REPLY_4)]),
]  # fmt: skip
LOST: list[tuple[Protocol, list[Turn]]] = [
    (PROXY, [("c", b"GET http://a.test/ HTTP/1.1\r\n\r\n"), ("s", YES), ("c", CONNECT)]),
    (PROXY, [("c", b"x" * (HEAD_LIMIT_BYTES + 9))]),
    (PROXY, [("s", YES)]),
    (SOCKS, [("c", b"\x05\x01\x01"), ("s", b"\x05\x01"), ("c", REQUEST)]),  # GSS-API
    (SOCKS, [("c", b"\x05\x01\x00"), ("s", b"\x05\xff")]),
    (SOCKS, [("c", b"\x05\x01\x02"), ("s", b"\x05\x02"), ("c", b"\x01\x00\x00"), ("s", b"\x01\x01")]),
    (SOCKS, [("c", b"\x05\x01\x00"), ("s", b"\x05\x00"), ("c", b"\x05\x03" + REQUEST[2:]), ("s", REPLY)]),
    (SOCKS, [("c", b"\x05\x01\x00"), ("s", b"\x05\x00"), ("c", REQUEST), ("s", b"\x05\x05" + REPLY[2:])]),
    (SOCKS, [("c", REQUEST_4), ("s", b"\x00\x5b" + bytes(6)), ("c", REQUEST_4)]),
    (SOCKS, [("c", b"\x04\x01\x01\xbb\xc0\x00\x02\x01" + b"x" * SOCKS_LIMIT_BYTES)]),
    (SOCKS, [("s", b"x" * (SOCKS_LIMIT_BYTES + 1))]),
]
REFUSED: list[tuple[Protocol, list[Turn], str]] = [
    (PROXY, [("c", CONNECT + HELLO)], NOT_ALONE),
    (PROXY, [("c", CONNECT), ("c", HELLO)], NOT_ALONE),
    (PROXY, [("c", CONNECT), ("s", b"SSH-2.0-OpenSSH_9")], NO_ANSWER),
    (PROXY, [("c", CONNECT), ("s", b"HTTP/1.1 200 x\r\n" + b"x" * HEAD_LIMIT_BYTES)], NO_ANSWER),
    (PROXY, [("c", CONNECT), ("s", NO), ("c", CONNECT.replace(b"a.test", b"b.test"))], ANOTHER),
    (PROXY, [("c", CONNECT), ("s", NO), ("c", CONNECT.replace(b"443", b"22"))], ANOTHER),
    (PROXY, [("c", CONNECT), ("s", NO), ("c", b"GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n")], ANOTHER),
    (PROXY, [("c", CONNECT), ("s", NO), ("c", b"x" * (HEAD_LIMIT_BYTES + 9))], ANOTHER),
    (SOCKS, [("c", REQUEST_4 + HELLO)], NOT_ALONE),
    (SOCKS, [("c", b"\x05\x01\x00" + REQUEST + HELLO), ("s", b"\x05\x00")], NOT_ALONE),
]


@pytest.mark.parametrize(("protocol", "turns"), OPENED, ids=named)
def test_there_is_a_tunnel_with_the_proxys_last_word_and_no_earlier(protocol: Protocol, turns: list[Turn]) -> None:
    *before, last = played(protocol, turns)
    assert (last, len(before) + 1) == (Step.UPGRADE, len(turns))


@given(st.sampled_from(OPENED), st.lists(st.integers(0, 90), max_size=12))
def test_a_tunnel_is_found_however_the_bytes_are_cut(dialogue: tuple[Protocol, list[Turn]], at: list[int]) -> None:
    protocol, turns = dialogue
    pieces = cut(turns, at)
    *before, last = played(protocol, pieces)
    assert (last, len(before) + 1) == (Step.UPGRADE, len(pieces))


@pytest.mark.parametrize("protocol", sorted(TUNNELS))
def test_a_server_inside_that_speaks_first_may_do_so_right_behind_the_consent(protocol: Protocol) -> None:
    (turns, *_) = [turns for one, turns in OPENED if one is protocol]
    greeted = [*turns[:-1], ("s", turns[-1][1] + b"220 mail.test ESMTP\r\n")]
    assert list(played(protocol, greeted))[-1] is Step.UPGRADE


@pytest.mark.parametrize(("protocol", "turns"), LOST, ids=named)
def test_where_there_is_no_tunnel_nothing_goes_on_as_tls_either(protocol: Protocol, turns: list[Turn]) -> None:
    assert set(played(protocol, turns)) == {Step.ON}
    *_, last = played(protocol, [*turns, ("s", SERVER_HELLO)])
    assert last == Malformed(reason=NOT_SEEN)


@pytest.mark.parametrize(("protocol", "turns", "reason"), REFUSED, ids=named)
def test_what_a_client_says_before_there_is_a_tunnel_or_asks_for_besides_is_malformed(
    protocol: Protocol, turns: list[Turn], reason: str
) -> None:
    *before, last = played(protocol, turns)
    assert set(before) <= {Step.ON}
    assert last == Malformed(reason=reason)


@given(st.sampled_from(sorted(TUNNELS)), st.lists(st.tuples(st.sampled_from("cs"), st.binary(min_size=1, max_size=40))))
def test_any_bytes_about_a_tunnel_have_one_of_three_outcomes(protocol: Protocol, pieces: list[Turn]) -> None:
    assert all(isinstance(said, Step | Malformed) for said in played(protocol, pieces))


@pytest.mark.parametrize("protocol", sorted(TUNNELS))
@pytest.mark.parametrize("piece", [b"x", b"\x05\xff", b"\x04\x01", b"HTTP/1.1 100 x\r\n\r\n", b"CONNECT "])
def test_memory_is_bounded_however_long_a_proxy_and_its_client_talk(protocol: Protocol, piece: bytes) -> None:
    reader, data = recogniser(protocol), piece * ((1 << 15) // len(piece))
    tracemalloc.start()
    try:
        for _ in range(20):
            reader.received(data)
            reader.sent(data)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * HEAD_LIMIT_BYTES + 10_000


def test_where_the_proxy_is_to_lead_is_told_by_its_port() -> None:
    for protocol, turns in OPENED:
        asks = recogniser(protocol)
        for who, data in turns:
            asks.sent(data) if who == "c" else asks.received(data)
        assert asks.port == (0 if any(bytes(18) in data for _, data in turns) else 443)
    nowhere = Connect()
    nowhere.sent(b"CONNECT a.test HTTP/1.1\r\n\r\n")
    assert (nowhere.is_asked, nowhere.port) == (True, 0)


def test_each_kind_of_tunnel_has_its_recogniser() -> None:
    assert isinstance(recogniser(PROXY), Connect)
    assert isinstance(recogniser(SOCKS), Socks)
