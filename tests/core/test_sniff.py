"""What the first bytes are, however they arrive."""

from __future__ import annotations

import hellos
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.clienthello import Malformed, NeedMore
from mitmsec.core.sniff import (
    FIRST_BYTES_LIMIT,
    GREETING_LIMIT_BYTES,
    LINE_LIMIT_BYTES,
    Protocol,
    Sniffed,
    first_bytes,
    server_bytes,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DNS = bytes.fromhex("001d1234010000010000000000000377777707657861 6d706c650000010001".replace(" ", ""))
CLIENTS = {
    "http": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "proxy": b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    "late http": b"\r\n\r\nPOST /x HTTP/1.0\nAccept: */*\nHost:b.example\n\nbody",
    "h2": PREFACE + b"\x00\x00\x00",
    "not h2": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "smtp": b"EHLO me.example\r\n",
    "imap": b"a1 LOGIN joe secret\r\n",
    "dns": DNS,
    "postgresql": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "ldap": b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00",
    "xmpp": b"<?xml version='1.0'?>\n<stream:stream to='a.test'>",
    "socks 5": b"\x05\x01\x00",
    "socks 4": b"\x04\x01\x01\xbb\xc0\x00\x02\x01\0",
    "text": b"USER joe\r\nPASS x\r\n",
    "malformed": b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
    **{f"tls {name}": data for name, data in hellos.REAL.items()},
}


def sniffed(data: bytes) -> Sniffed:
    outcome = first_bytes(data)
    assert isinstance(outcome, Sniffed), outcome
    return outcome


@pytest.mark.parametrize(
    ("client", "protocol", "name"),
    [
        ("http", Protocol.HTTP, "a.example"),
        ("proxy", Protocol.HTTP_PROXY, "a.example"),
        ("late http", Protocol.HTTP, "b.example"),
        ("h2", Protocol.HTTP2, None),
        ("not h2", Protocol.TCP, None),
        ("ssh", Protocol.SSH, None),
        ("smtp", Protocol.SMTP, None),
        ("imap", Protocol.IMAP, None),
        ("dns", Protocol.DNS, None),
        ("postgresql", Protocol.POSTGRESQL, None),
        ("ldap", Protocol.LDAP, None),
        ("xmpp", Protocol.XMPP, None),
        ("socks 5", Protocol.SOCKS, None),
        ("socks 4", Protocol.SOCKS, None),
        ("text", Protocol.TCP, None),
        ("tls curl", Protocol.TLS, "www.origin.example"),
        ("tls python-address", Protocol.TLS, None),
    ],
)
def test_clients(client: str, protocol: Protocol, name: str | None) -> None:
    found = sniffed(CLIENTS[client])
    assert (found.protocol, found.name) == (protocol, name)
    assert (found.hello is not None) == (protocol is Protocol.TLS)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_prefix_needs_more_or_already_has_the_final_answer(client: str) -> None:
    data = CLIENTS[client]
    final = first_bytes(data)
    assert not isinstance(final, NeedMore)
    answers = [first_bytes(data[:size]) for size in range(len(data))]
    decided = [answer for answer in answers if not isinstance(answer, NeedMore)]
    assert all(answer == final for answer in decided)
    assert answers[len(answers) - len(decided) :] == decided


ALPHABET = st.sampled_from(
    [b"\r\n", b"\n", b" ", b"\t", b":", b"GET", b"SSH-2.0", b"/", b"HTTP/1.1", b"Host", b"a.b", b"\x00"]
)


@given(
    st.one_of(
        st.binary(max_size=80), st.lists(ALPHABET, max_size=14).map(b"".join), st.sampled_from([*CLIENTS.values()])
    )
)
def test_any_bytes_have_one_of_three_outcomes_and_a_final_one_stays(data: bytes) -> None:
    final = None
    for size in range(len(data) + 1):
        outcome = first_bytes(data[:size])
        assert isinstance(outcome, Sniffed | NeedMore | Malformed)
        if final is not None:
            assert outcome == final
        elif not isinstance(outcome, NeedMore):
            final = outcome


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x08\x04\xd2\x16\x2a",  # nearly PostgreSQL
        b"\x05\x00\x00" + bytes(12),  # nearly SOCKS 5
        b"\x80\x2e\x01\x03\x01",  # SSL 2.0 hello
        b"\x16\x01",
        b"\xff\xfd",
        b"{",
        b"hello world\n",
        b"GET /\r\n",  # HTTP/0.9
        b"GET / HTTP/2.0\r\n",
        b"GET  HTTP/1.1\r\n",
        b"GET /a\tb\x01",
        b"GET / HTTP/1.1\r\r\n",
        b"quit\r\n",
        b"\r\n\x00",
    ],
)
def test_what_is_not_recognised_is_tcp(data: bytes) -> None:
    assert sniffed(data) == Sniffed(protocol=Protocol.TCP)


def test_the_first_bytes_say_how_much_more_is_needed_where_that_is_known() -> None:
    assert first_bytes(b"") == NeedMore(size_bytes=1)
    assert first_bytes(b"\x16") == NeedMore(size_bytes=6)
    assert first_bytes(DNS[:1]) == NeedMore(size_bytes=2)  # PostgreSQL begins like it
    assert first_bytes(DNS[:2]) == NeedMore(size_bytes=14)
    assert first_bytes(b"G") == NeedMore()


def test_a_line_without_end_is_given_up() -> None:
    line = b"GET /" + b"a" * LINE_LIMIT_BYTES
    assert first_bytes(line[:LINE_LIMIT_BYTES]) == NeedMore()
    assert sniffed(line).protocol is Protocol.TCP
    assert sniffed(line + b" HTTP/1.1\r\n\r\n").protocol is Protocol.TCP
    assert sniffed(b"\r" * (LINE_LIMIT_BYTES + 1)).protocol is Protocol.TCP


def test_spaces_in_a_request_line_cost_linear_time_and_belong_to_the_target() -> None:
    line = b"GET /a" + b" " * (LINE_LIMIT_BYTES - 40) + b"b HTTP/1.1\r\n"
    assert sniffed(line + b"Host: a.example\r\n\r\n").name == "a.example"


def test_no_answer_needs_more_than_the_limit() -> None:
    head = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * FIRST_BYTES_LIMIT
    assert not isinstance(first_bytes(head[:FIRST_BYTES_LIMIT]), NeedMore)


SERVERS = {
    b"SSH-2.0-OpenSSH_9.6\r\n": Protocol.SSH,
    b"220 mail.example ESMTP Postfix\r\n": Protocol.SMTP,
    b"220-mail.example esmtp\r\n": Protocol.SMTP,
    b"220 (vsFTPd 3.0.5)\r\n": Protocol.FTP,
    b"220 Service ready\r\n": Protocol.TCP,
    b"+OK POP3 ready\r\n": Protocol.POP3,
    b"* OK [CAPABILITY IMAP4rev1] ready\r\n": Protocol.IMAP,
    b"J\x00\x00\x00\x0a8.0.36\x00" + bytes(60): Protocol.MYSQL,
    b"\x0a\x00\x00\x00\x0a5.7": Protocol.MYSQL,
    b"J\x00\x00\x00\x0ax": Protocol.TCP,
    b"\xff\xfd\x18": Protocol.TCP,
    b"\x00\x01": Protocol.TCP,
    b"RFB 003.008\n": Protocol.TCP,
    b"+OK \x01\n": Protocol.TCP,
    b"220 ftp" + b"x" * GREETING_LIMIT_BYTES: Protocol.FTP,
}


@pytest.mark.parametrize("greeting", SERVERS)
def test_servers_that_speak_first(greeting: bytes) -> None:
    if greeting != b"\x00\x01":  # two bytes of what could still become MySQL
        assert server_bytes(greeting) is SERVERS[greeting]
    else:
        assert server_bytes(greeting) == NeedMore(size_bytes=3)


@given(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(sorted(SERVERS)),
        st.text("+OK *20\r\n-FTP", max_size=20).map(str.encode),
    )
)
def test_a_greeting_cut_anywhere_gives_the_same_protocol(data: bytes) -> None:
    final = None
    for size in range(len(data) + 1):
        outcome = server_bytes(data[:size])
        if final is not None:
            assert outcome is final
        elif not isinstance(outcome, NeedMore):
            final = outcome
