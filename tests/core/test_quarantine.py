"""Who can open what lies under quarantine, and the file's readable part."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core import quarantine
from mitmsec.core.quarantine import (
    MAGIC,
    PIECE_BYTES,
    About,
    Header,
    Malformed,
    Recipient,
    Share,
    about_line,
    in_pieces,
    pairs,
    parse_about,
    parse_preamble,
    parse_recipient,
    preamble,
)

ALICE = Recipient(name="alice", public=b"a" * 32)
BOB = Recipient(name="bob", public=b"b" * 32)
HEADER = Header(
    item="f-1",
    recipients=(ALICE, BOB),
    ephemeral=b"e" * 32,
    shares=(Share(first=0, second=1, for_first=b"1", for_second=b"2"),),
    content_bytes=3,
    is_whole=True,
)


def test_a_recipient_is_a_name_and_a_key() -> None:
    assert parse_recipient(ALICE.written) == ALICE
    assert parse_recipient(f"unit 3:bob:{base64.b64encode(b'b' * 32).decode()}").name == "unit 3:bob"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("alice", "a name and a public key"),
        (":" + ALICE.written.partition(":")[2], "a name and a public key"),
        ("a\nb:" + ALICE.written.partition(":")[2], "a name and a public key"),
        ("x" * 65 + ":" + ALICE.written.partition(":")[2], "a name and a public key"),
        ("alice:AAAA", "the key of alice is not 32 bytes in base64"),
        ("alice:!", "the key of alice is not 32 bytes in base64"),
    ],
)
def test_what_is_no_recipient_is_told(text: str, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        parse_recipient(text)


def test_any_two_are_a_pair() -> None:
    assert list(pairs(3)) == [(0, 1), (0, 2), (1, 2)]


def test_the_readable_part_is_read_again_and_says_where_the_rest_begins() -> None:
    began = preamble(HEADER)
    assert parse_preamble(began + b"sealed\n") == (HEADER, len(began))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no content under quarantine"),
        (preamble(HEADER)[:-1], "no content under quarantine"),
        (b"x" + preamble(HEADER), "no content under quarantine"),
        (MAGIC + b"{}\n", "its header is damaged"),
        (preamble(HEADER).replace(b'"second":1', b'"second":2'), "a share of nobody's"),
        (preamble(HEADER).replace(b'"first":0', b'"first":-1'), "a share of nobody's"),
        (preamble(replace(HEADER, recipients=(ALICE, replace(BOB, name="alice")))), "somebody is in it twice"),
        (preamble(replace(HEADER, recipients=(ALICE, replace(BOB, public=ALICE.public)))), "somebody is in it twice"),
        (preamble(replace(HEADER, recipients=(ALICE, replace(BOB, public=b"b")))), "the key of bob is not 32 bytes"),
        (
            preamble(replace(HEADER, recipients=(ALICE, replace(BOB, name="b\nb")))),
            "a name and a public key are wanted",
        ),
    ],
)
def test_what_is_no_such_file_is_told(content: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        parse_preamble(content)


@given(st.binary() | st.binary().map(lambda rest: MAGIC + rest + b"\n"))
def test_whatever_a_file_holds_it_is_a_header_or_malformed(content: bytes) -> None:
    try:
        header, at = parse_preamble(content)
    except Malformed:
        return
    assert preamble(header)
    assert at <= len(content)


def test_what_it_says_of_itself_is_read_again() -> None:
    about = About(
        flow="f", rule="r", detector="d", summary="s", location="l", host="h", method="GET", url="u",
        content_type="c", codings="", name="n", sent=True,
    )  # fmt: skip
    assert parse_about(about_line(about)) == about
    with pytest.raises(Malformed, match="damaged"):
        parse_about(b"{}")


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=4))
def test_pieces_have_one_size_but_for_the_last(sizes: list[int]) -> None:
    chunks = [bytes([65 + place]) * size for place, size in enumerate(sizes)]
    pieces = list(in_pieces(chunks))
    assert b"".join(piece for piece, _ in pieces) == b"".join(chunks)
    assert [is_last for _, is_last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece) == PIECE_BYTES for piece, _ in pieces[:-1])
    assert len(pieces[-1][0]) <= PIECE_BYTES


RULE = '\n[[rule]]\nname = "r"\naction = "decrypt"\ninspect = ["secrets"]\non_finding = "quarantine"\n'


def told(section: str) -> str:
    try:
        parse_policy("version = 1\n" + section, file="f.toml", read_list=str)
    except PolicyErrors as errors:
        return str(errors)
    return ""


def test_a_rule_that_puts_under_quarantine_needs_people_who_can_open_it() -> None:
    people = [Recipient(name=f"p{number}", public=bytes([number]) * 32).written for number in range(9)]
    assert "[quarantine]" in told(RULE)
    assert told(f"[quarantine]\nrecipients = {people[:2]!r}{RULE}") == ""
    assert told(f"[quarantine]\nrecipients = {people[:8]!r}{RULE}") == ""
    assert "2 to 8 people" in told(f"[quarantine]\nrecipients = {people[:1]!r}{RULE}")
    assert "2 to 8 people" in told(f"[quarantine]\nrecipients = {people!r}{RULE}")
    assert "two people with two keys" in told(f"[quarantine]\nrecipients = {[people[0]] * 2!r}{RULE}")
    other_name = "p9:" + people[0].partition(":")[2]
    assert "two people with two keys" in told(f"[quarantine]\nrecipients = {[people[0], other_name]!r}{RULE}")
    assert "is not 32 bytes" in told('[quarantine]\nrecipients = ["a:AAAA", "b:AAAA"]')
    assert quarantine.PEOPLE_MAX == 8
