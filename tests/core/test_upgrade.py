"""Dialogues that go on under TLS, that do not, and that must not."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.sniff import TUNNELS, UPGRADABLE, Protocol
from mitmsec.core.upgrade import Malformed, Step, recogniser
from mitmsec.core.upgrade_step import NO_ANSWER, NOT_ALONE, NOT_ASKED, NOT_LAST, NOT_SEEN

OID = b"1.3.6.1.4.1.1466.20037"
EXTENDED = b"\x30\x1d\x02\x01\x07\x77\x18\x80\x16" + OID
SUCCESS = b"\x30\x0c\x02\x01\x07\x78\x07\x0a\x01\x00\x04\x00\x04\x00"
PROCEED = b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
STREAM = b"<?xml version='1.0'?><stream:stream to='a.test' xmlns:stream='http://etherx.jabber.org/streams'>"
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
MYSQL_REQUEST = b"\x20\0\0\x01\x05\xae\xff\x19\0\0\0\x01\xff" + bytes(23)
HELLO = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"
SERVER_HELLO = b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03" + bytes(112)

type Turn = tuple[str, bytes]
UPGRADED: dict[Protocol, list[list[Turn]]] = {
    Protocol.SMTP: [
        [("s", b"220 mail.test ESMTP\r\n"), ("c", b"STARTTLS\r\n"), ("s", b"220 go\r\n")],
        [
            ("s", b"220-mail.test\r\n220 ESMTP\r\n"),
            ("c", b"EHLO me\r\n"),
            ("s", b"250-mail.test\r\n250-SIZE 1\r\n250 STARTTLS\r\n"),
            ("c", b"starttls \n"),
            ("s", b"220-well\n220\n"),
        ],
        [
            ("s", b"220 ESMTP\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"454 not now\r\n"),
            ("c", b"MAIL FROM:<a@b>\r\nRCPT"),
            ("s", b"250 ok\r\n"),
            ("c", b" TO:<c@d>\r\nDATA\r\n"),
            ("s", b"250 ok\r\n354 go\r\n"),
            ("c", b"STARTTLS\r\n.\r\n"),
            ("s", b"250 ok\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"220 go\r\n"),
        ],
        [
            ("s", b"220 ESMTP\r\n"),
            ("c", b"AUTH LOGIN\r\n"),
            ("s", b"334 VXNlcm5hbWU6\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"334 UGFzc3dvcmQ6\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"535 no\r\n"),
            ("c", b"NOOP\r\n"),
            ("s", b"250 ok\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"220 go\r\n"),
        ],
        [
            ("s", b"220 ESMTP\r\n"),
            ("c", b"BDAT 20 LAST\r\nSTARTTLS\r\nSTARTTLS\r\n"),
            ("s", b"250 ok\r\n"),
            ("c", b"STARTTLS\r\n"),
            ("s", b"220 go\r\n"),
        ],
    ],
    Protocol.FTP: [
        [("s", b"220 FTP\r\n"), ("c", b"AUTH TLS\r\n"), ("s", b"234 go\r\n")],
        [
            ("s", b"220-FTP\r\n230 not the end\r\n 220 nor this\r\n220-nor this\r\n220 now\r\n"),
            ("c", b"USER joe\r\n"),
            ("s", b"331 password\r\n"),
            ("c", b"AUTH GSSAPI\r\n"),
            ("s", b"334 using ADAT\r\n"),
            ("c", b"auth ssl\r\n"),
            ("s", b"234 go\r\n"),
        ],
    ],
    Protocol.POP3: [
        [("s", b"+OK POP3\r\n"), ("c", b"STLS\r\n"), ("s", b"+OK go\r\n")],
        [
            ("s", b"+OK\r\n"),
            ("c", b"CAPA\r\n"),
            ("s", b"+OK\r\nUSER\r\nSTLS\r\n.\r\n"),
            ("c", b"AUTH PLAIN\r\n"),
            ("s", b"+ \r\n"),
            ("c", b"STLS\r\n"),
            ("s", b"-ERR no\r\n"),
            ("c", b"stls\r\n"),
            ("s", b"-ERR busy\r\n"),
            ("c", b"STLS\r\n"),
            ("s", b"+OK\r\n"),
        ],
    ],
    Protocol.IMAP: [
        [("s", b"* OK IMAP4rev1\r\n"), ("c", b"a1 STARTTLS\r\n"), ("s", b"a1 OK go\r\n")],
        [
            ("s", b"* OK IMAP4rev1\r\n"),
            ("c", b"a LOGIN {8}\r\n"),
            ("s", b"+ go on\r\n"),
            ("c", b"x STARTTLS\r\n"),
            ("s", b"* BYE not yet\r\na NO wrong\r\n"),
            ("c", b"b CAPABILITY\r\n"),
            ("s", b"* CAPABILITY IMAP4rev1\r\n* 1 FETCH (BODY[] {9}\r\nc OK done)\r\nb OK\r\n"),
            ("c", b"c starttls\r\n"),
            ("s", b"* CAPABILITY x\r\nc BAD again\r\n"),
            ("c", b"d STARTTLS\r\n"),
            ("s", b"d ok\r\n"),
        ],
    ],
    Protocol.POSTGRESQL: [
        [("c", SSL_REQUEST), ("s", b"S")],
        [
            ("c", SSL_REQUEST[:-1] + b"\x30"),
            ("s", b"N"),
            ("c", SSL_REQUEST),
            ("s", b"N"),
            ("c", SSL_REQUEST),
            ("s", b"S"),
        ],
    ],
    Protocol.MYSQL: [[("s", b"J\0\0\0\x0a8.0.36\0" + bytes(60)), ("c", MYSQL_REQUEST)]],
    Protocol.LDAP: [
        [("c", EXTENDED), ("s", SUCCESS)],
        [
            ("c", b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"),
            ("s", b"\x30\x84\0\0\0\x0c" + b"\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"),
            ("c", b"\x30\x84\0\0\0\x26\x02\x02\x01\x07\x77\x84\0\0\0\x1c\x80\x84\0\0\0\x16" + OID),
            ("s", b"\x30\x05\x02\x01\x00\x78\x00" + b"\x30\x0d\x02\x02\x01\x07\x78\x07\x0a\x01\x01\x04\x00\x04\x00"),
            ("c", EXTENDED),
            ("s", SUCCESS),
        ],
    ],
    Protocol.XMPP: [
        [("c", STREAM), ("s", STREAM + b"<stream:features/>"), ("c", b"<starttls xmlns='urn:x'/>"), ("s", PROCEED)],
        [
            ("c", STREAM[21:] + b"\n"),
            ("s", b"any</ thing"),
            ("c", b"<tls:starttls a='>/'> </tls:starttls>"),
            ("s", b'\n<proceed xmlns="a/b"></proceed>'),
        ],
    ],
}
DIALOGUES = [(protocol, turns) for protocol, some in UPGRADED.items() for turns in some]
PLAIN: list[tuple[Protocol, list[Turn]]] = [
    (Protocol.SMTP, [("s", b"220 ESMTP\r\n"), ("c", b"STARTTLSX\r\n"), ("s", b"500 what\r\n"), ("c", b"QUIT\r\n")]),
    (Protocol.SMTP, [("c", b"STARTTLS\r\n"), ("s", b"500 too early"), ("c", b"x" * 600 + b"\r\n")]),
    (Protocol.SMTP, [("s", b"220 ESMTP\r\n"), ("c", b"x" * 600 + b"STARTTLS\r\n"), ("s", b"odd\r\n")]),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"STARTTLS\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"what?\r\n")]),
    (Protocol.POSTGRESQL, [("c", b"\0\0\0\x09\0\x03\0\0x"), ("s", b"S"), ("c", SSL_REQUEST)]),
    (Protocol.POSTGRESQL, [("s", b"S"), ("c", SSL_REQUEST)]),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST), ("s", b"Error"), ("c", SSL_REQUEST)]),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST[:-1] + b"\x30"), ("s", b"G"), ("c", HELLO)]),
    (Protocol.MYSQL, [("s", b"hello"), ("c", b"\x50\0\0\x01\x05\xa6" + bytes(78)), ("c", HELLO)]),
    (Protocol.MYSQL, [("c", b"\x20\0\0\x01\x05\xa6" + bytes(30)), ("c", HELLO)]),
    (Protocol.LDAP, [("c", b"\0\0\0\x10sealed"), ("s", b"\x30\x02ab"), ("c", EXTENDED)]),
    (Protocol.LDAP, [("c", b"\x30\x80"), ("s", SUCCESS), ("c", EXTENDED)]),
    (Protocol.LDAP, [("c", b"\x30\x85\0\0\0\0\x01"), ("c", EXTENDED)]),
    (
        Protocol.LDAP,
        [("c", b"\x30\x02\x02\x00\x30\x03\x02\x01\x01\x30\x02ab\x30\x05\x02\x01\x07\x77\x00"), ("s", b"\0")],
    ),
    (Protocol.XMPP, [("c", STREAM + b"<auth mechanism='PLAIN'/>"), ("c", b"<starttls/>"), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", b"hello"), ("c", b"<starttls/>"), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"<failure/>"), ("c", b"<starttls/>"), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"</stream:stream>")]),
    (Protocol.XMPP, [("c", b"<starttls " + b"a" * 3000), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", b"<starttls>" + b"a" * 3000), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", b"<starttls><x/>")]),
]
REFUSED: list[tuple[Protocol, list[Turn], str]] = [
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"STARTTLS\r\nRSET\r\n")], NOT_ALONE),
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"STARTTLS\r\n"), ("c", b"RSET\r\n")], NOT_ALONE),
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"STARTTLS\r\n"), ("s", b"220 go\r\n250 more\r\n")], NOT_LAST),
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"STARTTLS\r\n"), ("s", b"\x16\x03\x03\0\r\n")], NO_ANSWER),
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", HELLO)], NOT_ASKED),
    (
        Protocol.SMTP,
        [("s", b"220 a\r\n"), ("c", b"NOOP\r\nSTARTTLS\r\n"), ("s", b"250 a\r\n220 b\r\n"), ("c", HELLO)],
        NOT_ASKED,
    ),
    (Protocol.FTP, [("s", b"220 a\r\n"), ("c", b"AUTH TLS\r\nUSER joe\r\n")], NOT_ALONE),
    (Protocol.FTP, [("s", b"220 a\r\n"), ("c", b"AUTH TLS\r\n"), ("s", b"234 a\r\n230 b\r\n")], NOT_LAST),
    (Protocol.POP3, [("s", b"+OK\r\n"), ("c", b"STLS\r\nUSER joe\r\n")], NOT_ALONE),
    (Protocol.POP3, [("s", b"+OK\r\n"), ("c", b"STLS\r\n"), ("s", b"+OK\r\n+OK\r\n")], NOT_LAST),
    (Protocol.POP3, [("s", b"+OK\r\n"), ("c", b"STLS\r\n"), ("s", b"what\r\n")], NO_ANSWER),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\nb LOGOUT\r\n")], NOT_ALONE),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"a OK\r\n* OK b\r\n")], NOT_LAST),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"b OK\r\n")], NO_ANSWER),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"* 1 FETCH {7}\r\na OK x\r\n")], NO_ANSWER),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"* " + b"x" * 600 + b"\r\n")], NO_ANSWER),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST + HELLO)], NOT_ALONE),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST), ("s", b"SS")], NOT_LAST),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST), ("s", b"NE")], NO_ANSWER),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST), ("s", b"G")], NO_ANSWER),
    (Protocol.POSTGRESQL, [("c", SSL_REQUEST), ("s", b"N"), ("c", HELLO)], NOT_ASKED),
    (Protocol.MYSQL, [("c", MYSQL_REQUEST + b"\x01")], NOT_LAST),
    (Protocol.MYSQL, [("c", b"\x50\0\0\x01\x05\xae" + bytes(78))], NOT_ASKED),
    (Protocol.MYSQL, [("c", b"\x20\x01\0\x01\x05\xae" + bytes(78))], NOT_ASKED),
    (Protocol.MYSQL, [("c", b"\x01\0\0\x01\x05\xae")], NOT_ASKED),
    (Protocol.MYSQL, [("c", HELLO)], NOT_ASKED),
    (Protocol.LDAP, [("c", EXTENDED + EXTENDED)], NOT_ALONE),
    (Protocol.LDAP, [("c", EXTENDED), ("s", SUCCESS + SUCCESS)], NOT_LAST),
    (Protocol.LDAP, [("c", EXTENDED), ("s", b"HTTP/1.1")], NO_ANSWER),
    (Protocol.LDAP, [("c", EXTENDED), ("s", SUCCESS.replace(b"\x78", b"\x61"))], NO_ANSWER),
    (Protocol.LDAP, [("c", EXTENDED), ("s", b"\x30\x05\x02\x01\x07\x78\x00")], NO_ANSWER),
    (Protocol.XMPP, [("c", b"<starttls/><auth/>")], NOT_ALONE),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", PROCEED + b"<iq/>")], NOT_LAST),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"hello")], NO_ANSWER),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"<success/>")], NO_ANSWER),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"<proceed>" + b"x" * 3000)], NO_ANSWER),
    (Protocol.XMPP, [("c", HELLO)], NOT_ASKED),
    (Protocol.XMPP, [("c", b"<starttls" + b" " * 2037 + b"/><auth/>")], NOT_ALONE),
    (Protocol.XMPP, [("c", b"<stream:stream" + b" " * 2022 + b"><starttls/><auth/>")], NOT_ALONE),
    (Protocol.XMPP, [("c", b"<starttls/>"), ("s", b"<proceed" + b" " * 2038 + b"/><iq/>")], NOT_LAST),
]
HIDDEN: list[tuple[Protocol, list[Turn]]] = [
    # servers that empty their buffer before TLS, and a client that begins before it has the answer
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"NOOP\r\nSTARTTLS\r\nX"), ("s", b"250 a\r\n220 b\r\n")]),
    (Protocol.SMTP, [("s", b"220 a\r\n"), ("c", b"NOOP\r\nSTARTTLS\r\n" + HELLO), ("s", b"250 a\r\n220 b\r\n")]),
    (Protocol.FTP, [("s", b"220 a\r\n"), ("c", b"NOOP\r\nAUTH TLS\r\nX"), ("s", b"200 a\r\n234 b\r\n")]),
    # a consent that clients take for one and that is none
    (Protocol.POP3, [("s", b"+OK\r\n"), ("c", b"STLS\r\n"), ("s", b"+ OK\r\n")]),
    (Protocol.IMAP, [("s", b"* OK\r\n"), ("c", b"a STARTTLS\r\n"), ("s", b"+ go\r\n")]),
    (Protocol.POSTGRESQL, [("s", b"S"), ("c", SSL_REQUEST)]),
    # lengths that we do not read, of the message and of what is in it: slapd takes the second
    (Protocol.LDAP, [("c", b"\x30\x88" + bytes(7) + b"\x1d" + EXTENDED[2:]), ("s", SUCCESS)]),
    (Protocol.LDAP, [("c", b"\x30\x25" + EXTENDED[2:6] + b"\x88" + bytes(7) + EXTENDED[6:]), ("s", SUCCESS)]),
    # XML that XMPP forbids, and stanzas before
    (Protocol.XMPP, [("c", STREAM + b"<!-- x --><starttls/>"), ("s", PROCEED)]),
    (Protocol.XMPP, [("c", STREAM + b"<iq/>"), ("s", b"<iq/>"), ("c", b"<starttls/>"), ("s", PROCEED)]),
]


def played(protocol: Protocol, pieces: list[Turn]) -> Iterator[Step | Malformed]:
    """What is said of each piece, until something is said but ON."""
    reader = recogniser(protocol)
    for who, piece in pieces:
        said = reader.sent(piece) if who == "c" else reader.received(piece)
        yield said
        if said is not Step.ON:
            return


def cut(turns: list[Turn], at: list[int]) -> list[Turn]:
    """The same dialogue in more pieces."""
    pieces = []
    for who, data in turns:
        marks = sorted({0, len(data), *(mark % len(data) for mark in at)})
        pieces += [(who, data[begin:end]) for begin, end in itertools.pairwise(marks) if end > begin]
    return pieces


def named(value: object) -> str | None:
    return value.value if isinstance(value, Protocol) else None


@pytest.mark.parametrize(("protocol", "turns"), DIALOGUES, ids=named)
def test_a_dialogue_goes_on_under_tls_with_its_last_word_and_no_earlier(protocol: Protocol, turns: list[Turn]) -> None:
    *before, last = played(protocol, turns)
    assert (last, len(before) + 1) == (Step.UPGRADE, len(turns))
    reader = recogniser(protocol)
    for who, data in turns:
        reader.sent(data) if who == "c" else reader.received(data)
    assert (reader.sent(HELLO), reader.received(HELLO)) == (Step.ON, Step.ON)  # deaf


@given(st.sampled_from(DIALOGUES), st.lists(st.integers(0, 400), max_size=12))
def test_an_upgrade_is_found_however_the_bytes_are_cut(dialogue: tuple[Protocol, list[Turn]], at: list[int]) -> None:
    protocol, turns = dialogue
    pieces = cut(turns, at)
    *before, last = played(protocol, pieces)
    assert (last, len(before) + 1) == (Step.UPGRADE, len(pieces))


@given(st.sampled_from(DIALOGUES))
def test_an_upgrade_is_found_byte_by_byte(dialogue: tuple[Protocol, list[Turn]]) -> None:
    protocol, turns = dialogue
    assert list(played(protocol, cut(turns, [*range(400)])))[-1] is Step.UPGRADE


@given(st.sampled_from(PLAIN), st.lists(st.integers(0, 400), max_size=12))
def test_what_does_not_ask_for_tls_stays_plaintext(dialogue: tuple[Protocol, list[Turn]], at: list[int]) -> None:
    protocol, turns = dialogue
    assert set(played(protocol, cut(turns, at))) == {Step.ON}


@pytest.mark.parametrize(("protocol", "turns", "reason"), REFUSED, ids=named)
def test_what_would_reach_from_plaintext_into_tls_is_malformed(
    protocol: Protocol, turns: list[Turn], reason: str
) -> None:
    *before, last = played(protocol, turns)
    assert set(before) <= {Step.ON}
    assert last == Malformed(reason=reason)


@given(
    st.sampled_from([one for one in REFUSED if one[2] in (NOT_ALONE, NOT_ASKED)]),
    st.lists(st.integers(0, 90), max_size=6),
)
def test_what_a_client_injects_is_malformed_however_it_is_cut(
    dialogue: tuple[Protocol, list[Turn], str], at: list[int]
) -> None:
    protocol, turns, reason = dialogue
    assert list(played(protocol, cut(turns, at)))[-1] == Malformed(reason=reason)


@pytest.mark.parametrize(("protocol", "turns"), HIDDEN, ids=named)
def test_an_upgrade_that_nobody_saw_ends_when_the_server_begins_tls(protocol: Protocol, turns: list[Turn]) -> None:
    under_tls: list[Turn] = [("c", b"more" + HELLO), ("s", SERVER_HELLO)]
    *before, last = played(protocol, [*turns, *under_tls])
    assert set(before) == {Step.ON}
    assert last == Malformed(reason=NOT_SEEN)
    at_once: list[Turn] = [*turns, ("s", b"220 go\r\n" + SERVER_HELLO)]
    assert list(played(protocol, at_once))[-1] == Malformed(reason=NOT_SEEN)


@given(st.sampled_from(HIDDEN), st.lists(st.integers(0, 90), max_size=6))
def test_an_upgrade_that_nobody_saw_ends_however_it_is_cut(
    dialogue: tuple[Protocol, list[Turn]], at: list[int]
) -> None:
    protocol, turns = dialogue
    pieces = cut([*turns, ("c", HELLO), ("s", SERVER_HELLO)], at)
    assert isinstance(list(played(protocol, pieces))[-1], Malformed)


@given(
    st.sampled_from(sorted(UPGRADABLE)), st.lists(st.tuples(st.sampled_from("cs"), st.binary(min_size=1, max_size=40)))
)
def test_any_bytes_have_one_of_three_outcomes(protocol: Protocol, pieces: list[Turn]) -> None:
    assert all(isinstance(said, Step | Malformed) for said in played(protocol, pieces))


@pytest.mark.parametrize("protocol", sorted(UPGRADABLE))
@pytest.mark.parametrize("piece", [b"x", b"a OK\r\n", b"<", b"\x30\x84\x7f\xff\xff\xff"])
def test_memory_is_bounded_whatever_comes(protocol: Protocol, piece: bytes) -> None:
    """A line or a packet without an end, a greeting without an end."""
    reader, data = recogniser(protocol), piece * ((1 << 14) // len(piece))
    tracemalloc.start()
    try:
        for _ in range(4):
            if reader.received(data) is not Step.ON or reader.sent(data) is not Step.ON:
                break
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_no_more_of_mysql_is_read_than_tells_where_a_hello_may_begin() -> None:
    reader = recogniser(Protocol.MYSQL)
    wanted = []
    for at in range(len(MYSQL_REQUEST)):
        wanted.append(reader.reads_bytes)
        said = reader.sent(MYSQL_REQUEST[at : at + 1])
    assert said is Step.UPGRADE
    assert wanted == [4, 3, 2, 1, *range(32, 0, -1)]
    assert reader.reads_bytes is None


def test_every_protocol_that_may_go_on_under_tls_has_a_recogniser_and_a_dialogue() -> None:
    assert UPGRADED.keys() == UPGRADABLE
    assert {one for one in Protocol if _is_recognised(one)} == UPGRADABLE | TUNNELS


def _is_recognised(protocol: Protocol) -> bool:
    try:
        return bool(recogniser(protocol))
    except ValueError:
        return False


@pytest.mark.parametrize("protocol", [None, Protocol.SSH, Protocol.TLS])
def test_other_protocols_do_not_go_on_under_tls(protocol: Protocol | None) -> None:
    with pytest.raises(ValueError, match="as anything else"):
        recogniser(protocol)
