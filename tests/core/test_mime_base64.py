"""What lies in base64 is read although it is broken, and what programs read in different ways is told as it travels."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.core.mime_base64 import STRANGE_LIMIT_BYTES, LenientBase64, from_base64

LINE = base64.b64encode(b"x" * 51)  # 68 characters


def read(lines: bytes, step: int = 1 << 20) -> tuple[bytes, bytes, bool]:
    """What it says, what of it is strange, and whether anything is."""
    reading, said, at = LenientBase64(), b"", 0
    while at < len(lines):
        end = lines.rfind(b"\n", at, at + step) + 1 or lines.find(b"\n", at) + 1 or len(lines)
        said, at = said + reading.feed(lines[at:end]), end
    said += reading.close()
    return said, reading.strange, reading.is_strange


@settings(max_examples=40)
@given(st.binary(max_size=300), st.sampled_from([b"\n", b"\r\n", b" \r\n", b"\n\n"]), st.integers(1, 76))
def test_what_programs_write_is_read_and_nothing_is_strange(content: bytes, end: bytes, width: int) -> None:
    coded = base64.b64encode(content)
    lines = b"".join(coded[at : at + width] + end for at in range(0, len(coded), width))
    assert read(lines) == (content, b"", False)
    assert read(lines.rstrip(b"=\r\n ")) == (content, b"", False)
    assert from_base64(coded) == content


@pytest.mark.parametrize(
    ("lines", "said", "strange"),
    [
        (LINE + b"A=\r\n" + LINE + b"\r\n", b"x" * 102, LINE + b"A=\r\n" + LINE + b"\r\n"),
        (b"QUJD\nQUJDA\n=\nQUJD\n", b"ABCABCABC", b"=\nQUJD\n"),
        (b"QUJDA", b"ABC", b""),
        (b"QQ==\nQQ==\n", b"AA", b"QQ==\n"),
        (b"QQ==QQ==\n", b"AA", b"QQ==QQ==\n"),
        (b"QQ=\n=\n\nQQ\n", b"AA", b"QQ\n"),
        (b"QUJD\n4111 4111 4111 4111\nQUJD\n", b"ABC" + base64.b64decode(b"4111" * 4) + b"ABC",
         b"4111 4111 4111 4111\nQUJD\n"),
        (b"QUJD\n-- \nour list\n", b"ABC" + from_base64(b"ourlist"), b"-- \nour list\n"),
        (b"QUJD\n===\n", b"ABC", b"===\n"),
        (b"QU-JD\0\n", b"ABC", b"QU-JD\0\n"),
    ],
)  # fmt: skip
def test_what_is_broken_is_read_as_far_as_it_goes_and_is_strange(lines: bytes, said: bytes, strange: bytes) -> None:
    for step in (1, 1 << 20):
        assert read(lines, step) == (said, strange, True)


def test_what_is_strange_is_kept_within_bounds() -> None:
    much = b"a b\n" + b"QUJD\n" * STRANGE_LIMIT_BYTES
    assert read(much, STRANGE_LIMIT_BYTES // 3)[1] == much[:STRANGE_LIMIT_BYTES]


PIECES = [b"QUJD", b"Q", b"QQ", b"=", b"\n", b"\r\n", b" ", b"-", b"\xff", b"\0", b"\r"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PIECES), max_size=20), st.integers(1, 20))
def test_it_is_read_the_same_however_it_is_cut(pieces: list[bytes], step: int) -> None:
    lines = b"".join(pieces)
    assert read(lines, step) == read(lines)


@pytest.mark.parametrize("piece", [b"A=", b"=\n", b"a b\n", b"A \n", b"\r"])
def test_much_that_is_broken_takes_little_time(piece: bytes) -> None:
    begun_s = time.process_time()
    read(piece * ((1 << 16) // len(piece)), 1 << 16)
    assert time.process_time() - begun_s < 0.5
