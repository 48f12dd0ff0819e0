"""Lines that callers and the origin write."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attribution.labels import Label, Sighting, corpus, labels, line, sightings, token

BRIEF = Label(7, "brief", 4711, 1_795_915_362.81, "/usr/bin/python3")
SEEN = Sighting(7, "10.213.7.1", 40_000, 7)


def test_what_is_written_is_read_again_and_empty_lines_are_nothing():
    assert labels([line(BRIEF).decode(), "\n"]) == [BRIEF]
    assert sightings([line(SEEN).decode()]) == [SEEN]


@given(st.builds(Label, st.integers(0, 10**6), st.just("steady"), st.integers(1, 2**22), st.floats(0, 2e9), st.text()))
def test_a_record_is_one_line_there_and_back(label):
    written = line(label)
    assert written.count(b"\n") == 1
    assert labels([written.decode()]) == [label]


@pytest.mark.parametrize("text", ["{", "[]", '{"flow": 1}', line(SEEN).decode()])
def test_another_line_is_no_label(text):
    with pytest.raises(ValueError):
        labels([text])


def test_the_corpus_has_every_flow_in_order_with_the_far_ends_view_or_none():
    other = Label(3, "brief", 4712, 0.0, "/usr/bin/python3")
    first, second = (json.loads(text) for text in corpus([BRIEF, other], [SEEN]))
    assert (first["flow"], first["seen"]) == (3, None)
    assert (second["pid"], second["seen"]["port"], second["seen"]["token"]) == (4711, 40_000, 7)


@pytest.mark.parametrize(
    ("first_bytes", "number"),
    [
        (b"=4711\n", 4711),
        (b"=4711\r\nmore", 4711),
        (b"GET /4711 HTTP/1.1\r\n", 4711),
        (b"", None),
        (b"=\n", None),
        (b"GET /favicon.ico HTTP/1.1\r\n", None),
        (b"=" + b"9" * 5000, None),
        ("=\u0664\n".encode(), None),
    ],
)
def test_a_flow_says_its_number_first(first_bytes, number):
    assert token(first_bytes) == number


@given(st.binary())
def test_any_bytes_are_a_number_or_none(first_bytes):
    found = token(first_bytes)
    assert found is None or str(found).encode() in first_bytes
