from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.body_parts import (
    HEAD_LIMIT_BYTES,
    PARTS_LIMIT,
    REST,
    GrpcMessages,
    Multipart,
    Opened,
    Splitter,
    splitter,
)

FORM = (
    b"a preamble\r\n--cut\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nsome words\r\n"
    b"--cut  \r\nContent-Disposition: form-data; name=\"file\"; filename=\"report.pdf\"\r\n"
    b"Content-Type: application/pdf\r\n\r\n%PDF\r\n--cu\r\n--cut--\r\nan epilogue"
)  # fmt: skip


def read(made: Splitter, *pieces: bytes) -> list[tuple[str, bytes]]:
    """Names and contents; "" is what came before the first part."""
    found: list[tuple[str, bytes]] = [("", b"")]
    for events in (*map(made.feed, pieces), made.close()):
        for event in events:
            if isinstance(event, Opened):
                found.append((event.name, b""))
            else:
                assert event
                found[-1] = (found[-1][0], found[-1][1] + event)
    return found


def test_parts_have_the_names_of_files_or_fields_and_nothing_is_left_out() -> None:
    assert read(Multipart(b"cut"), FORM) == [
        ("", b"a preamble"),
        ("note", b"some words"),
        ("report.pdf", b"%PDF\r\n--cu"),
        ("epilogue", b"an epilogue"),
    ]


@given(st.lists(st.integers(0, len(FORM))))
def test_any_split_gives_the_same(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(FORM)]
    pieces = [FORM[begin:end] for begin, end in itertools.pairwise(marks)]
    assert read(Multipart(b"cut"), *pieces) == read(Multipart(b"cut"), FORM)


@given(
    st.lists(st.sampled_from([b"\r\n", b"--", b"-", b"cut", b"x", b": ", b" ", b"--cut\r\n", b"\r\n\r\n"]), max_size=30)
)
def test_of_hostile_bytes_every_byte_comes_out_or_is_in_a_head(words: list[bytes]) -> None:
    body, out, heads = b"".join(words), b"", 0
    made = Multipart(b"cut")
    for events in (*map(made.feed, words), made.close()):
        for event in events:
            if isinstance(event, Opened):
                assert event.at <= len(body)
                heads += 1
            else:
                out += event
    assert heads or out == LAST_LINE.sub(b"", body)


LAST_LINE = re.compile(rb"(?:\A|\r\n)--cut[ \t]*--[\r\n]*\Z")  # of a body without any part: it says no more than that


def test_where_a_part_is_and_what_was_said_of_it() -> None:
    opened = [event for event in Multipart(b"cut").feed(FORM) if isinstance(event, Opened)]
    assert [FORM[event.at : event.at + 4] for event in opened] == [b"some", b"%PDF", b"an e"]
    assert opened[1].content_type == "application/pdf"
    assert b'filename="report.pdf"' in opened[1].head


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"Content-Disposition: form-data; filename*=utf-8''r%C3%A9sum%C3%A9.pdf", "r%C3%A9sum%C3%A9.pdf"),
        (b'Content-Disposition: form-data; name="a"; filename="\x01x\xff"', "?x\ufffd"),
        (b"X: y", "part 1"),
    ],
)
def test_names_can_be_shown(head: bytes, name: str) -> None:
    assert [found for found, _ in read(Multipart(b"c"), b"--c\r\n" + head + b"\r\n\r\nx\r\n--c--")][1:] == [name]


def test_a_line_that_only_begins_like_a_delimiter_is_content() -> None:
    body = b"--c\r\n\r\nx\r\n--cutter\r\n\r\ny\r\n--c-\r\nz\r\n--c\r\n\r\nw"
    assert read(Multipart(b"c"), body) == [
        ("", b""),
        ("part 1", b"x\r\n--cutter\r\n\r\ny\r\n--c-\r\nz"),
        ("part 2", b"w"),
    ]


def test_without_parts_everything_comes_out_piece_by_piece() -> None:
    body = b"no parts at all"
    assert read(Multipart(b"c"), *(body[at : at + 1] for at in range(len(body)))) == [("", body)]
    assert read(GrpcMessages(""), b"\0\0") == [("", b"\0\0")]


def test_what_has_no_end_is_read_as_it_comes() -> None:
    endless = b"--c\r\nX: " + b"y" * (2 * HEAD_LIMIT_BYTES)
    assert read(Multipart(b"c"), endless) == [("", endless)]
    many = b"--c\r\nX: y\r\n\r\nz\r\n" * (PARTS_LIMIT + 5)
    found = read(Multipart(b"c"), many)
    assert len(found) == PARTS_LIMIT + 1
    assert found[-1][1].count(b"--c") == 5


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ('multipart/form-data; charset=utf-8; boundary="a b"', Multipart),
        ("Multipart/Mixed;boundary=x", Multipart),
        ("application/grpc+proto", GrpcMessages),
        ("application/grpc-web", GrpcMessages),
        ("multipart/form-data", None),
        ("application/grpc-web-text", None),
        ("text/plain; boundary=x", None),
    ],
)
def test_which_bodies_have_parts(content_type: str, kind: type | None) -> None:
    assert isinstance(splitter(content_type), kind) if kind else splitter(content_type) is None


GRPC = b"\0\0\0\0\3one\1\0\0\0\5xxxxx\0\0\0\0\0\0\0\0"


@given(st.lists(st.integers(0, len(GRPC))))
def test_grpc_messages_however_they_are_cut(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(GRPC)]
    pieces = [GRPC[begin:end] for begin, end in itertools.pairwise(marks)]
    expected = [("", b""), ("message 1", b"one"), ("message 2", b"xxxxx"), ("message 3", b"\0\0\0")]
    assert read(GrpcMessages("gzip"), *pieces) == expected


def test_only_messages_that_say_so_are_compressed() -> None:
    opened = [event for event in GrpcMessages("gzip").feed(GRPC) if isinstance(event, Opened)]
    assert [(event.codings, event.at) for event in opened] == [("", 5), ("gzip", 13), ("", 23)]


SMALL = b"\0\0\0\0\1x"


@pytest.mark.parametrize("coding", ["", "identity"])
def test_beyond_so_many_messages_the_rest_is_one_content_heads_and_all(coding: str) -> None:
    body = SMALL * (PARTS_LIMIT + 100) + b"\0\0\0\0\3end"
    for step in (3, len(body)):
        found = read(GrpcMessages(coding), *(body[at : at + step] for at in range(0, len(body), step)))
        assert found[PARTS_LIMIT:] == [(f"message {PARTS_LIMIT}", b"x"), (REST, SMALL * 100 + b"\0\0\0\0\3end")]


def test_a_compressed_message_is_a_content_of_its_own_however_many_came_before() -> None:
    coded = b"\1\0\0\0\3zip"
    body = SMALL * (PARTS_LIMIT + 1) + coded + SMALL
    events = [event for event in GrpcMessages("gzip").feed(body) if isinstance(event, Opened)][PARTS_LIMIT:]
    assert [(event.name, event.codings) for event in events] == [
        (REST, ""),
        (f"message {PARTS_LIMIT + 1}", "gzip"),
        (REST, ""),
    ]
    assert body[events[1].at :].startswith(b"zip")
    assert body[events[2].at :] == SMALL


def test_what_only_begins_like_a_delimiter_is_content_in_one_piece() -> None:
    form = b"--cut\r\n\r\n" + b"\r\n--cutter" * 1000 + b"\r\n--cut--"
    [opened, content] = [*(made := Multipart(b"cut")).feed(form), *made.close()]
    assert isinstance(opened, Opened)
    assert content == b"\r\n--cutter" * 1000
