"""DNS over HTTPS is known by what is asked, wherever that stands."""

from __future__ import annotations

import base64

import pytest
from dns_writer import AAAA, HTTPS, query, response
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind
from mitmsec_addons.doh import MESSAGE, OBLIVIOUS, QUESTION_LIMIT_BYTES, URL_LIMIT_BYTES, Doh

QUESTION = query("www.a.test", HTTPS, 0)


def body(content_type: str = MESSAGE, *, sent: bool = True) -> Part:
    return Part(flow="f", kind=PartKind.BODY, sent=sent, host="dns.test", content_type=content_type)


URL = Part(flow="f", kind=PartKind.URL, sent=True, host="dns.test")


def said(part: Part, *slices: bytes) -> list[str]:
    inspection = Doh().open(part)
    assert inspection is not None
    found = [*(finding for data in slices for finding in inspection.feed(data)), *inspection.close()]
    assert all(one.detector == "doh" and one.location == f"request.{part.kind}" for one in found)
    return [one.summary for one in found]


def encoded(message: bytes) -> bytes:
    return base64.urlsafe_b64encode(message).rstrip(b"=")


@pytest.mark.parametrize("content_type", [MESSAGE, "Application/DNS-Message; charset=x"])
def test_a_question_that_is_posted_is_named(content_type: str) -> None:
    assert said(body(content_type), QUESTION) == ["DNS over HTTPS asks for www.a.test (HTTPS)"]
    assert said(body(content_type), query("b.test", AAAA), b"") == ["DNS over HTTPS asks for b.test (AAAA)"]
    assert said(body(content_type), query("b.test", 999)) == ["DNS over HTTPS asks for b.test (type 999)"]
    assert said(body(content_type), query("")) == ["DNS over HTTPS asks for a name that is no host (A)"]


@pytest.mark.parametrize(
    "url",
    [b"https://dns.test/dns-query?dns=%b", b"https://a.test/x?ct&dns=%b&dns=AAAA", b"http://a.test?a=1&dns=%b==#x"],
)
def test_a_question_in_a_url_is_named_whatever_the_path(url: bytes) -> None:
    assert said(URL, url % encoded(QUESTION)) == ["DNS over HTTPS asks for www.a.test (HTTPS)"]


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        (OBLIVIOUS, b"encrypted"),
        (OBLIVIOUS, QUESTION),
        (MESSAGE, b""),
        (MESSAGE, b"x" * 40),
        (MESSAGE, response("a.test")),
        (MESSAGE, QUESTION + bytes(QUESTION_LIMIT_BYTES)),
    ],
)
def test_what_says_that_it_is_dns_and_cannot_be_read_is_told_too(content_type: str, data: bytes) -> None:
    assert said(body(content_type), data) == ["DNS over HTTPS asks for what cannot be read"]


@pytest.mark.parametrize(
    "url",
    [
        b"https://a.test/dns-query",
        b"https://a.test/?dns=example.com",
        b"https://a.test/?dns=AAAA",
        b"https://a.test/?dns=" + encoded(response("a.test")),
        b"https://a.test/?x=" + encoded(QUESTION),
        b"https://[a.test/?dns=" + encoded(QUESTION),
        b"https://a.test/?" + b"x" * URL_LIMIT_BYTES + b"&dns=" + encoded(QUESTION),
        b"\xff\0",
    ],
)
def test_other_urls_are_none_of_its_business(url: bytes) -> None:
    assert said(URL, url) == []


def test_other_parts_are_not_looked_at() -> None:
    others = [body("text/plain"), body(""), body(sent=False), Part(flow="f", kind=PartKind.URL, sent=False, host="h")]
    others += [
        Part(flow="f", kind=kind, sent=True, host="h", content_type=MESSAGE)
        for kind in (PartKind.HEADERS, PartKind.STREAM)
    ]
    assert [Doh().open(part) for part in others] == [None] * len(others)


def test_it_takes_no_words() -> None:
    with pytest.raises(ValueError, match="doh has no words"):
        Doh(("x",))


@given(st.one_of(st.binary(max_size=80), st.just(QUESTION)), st.integers(0, 80), st.booleans())
def test_slices_change_nothing(data: bytes, at: int, in_url: bool) -> None:
    part, content = (URL, b"https://a.test/?dns=" + encoded(data)) if in_url else (body(), data)
    assert said(part, content[:at], content[at:]) == said(part, content)
    inspection = Doh().open(part)
    assert inspection is not None
    inspection.feed(bytes(100_000))
    assert len(inspection._held) <= URL_LIMIT_BYTES + 1
