"""Text that content streams of PDFs show, and what is none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.pdf_text import PdfText


def read(content: bytes, step: int = 1 << 16) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    shown: list[tuple[bytes, bytes]] = []
    text = PdfText(lambda font, string: shown.append((font, string)))
    out = [piece for at in range(0, len(content), step) for piece in text.feed(content[at : at + step])]
    return b"".join([*out, *text.close()]), shown


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"BT (card 4539 1488) Tj ET", b"card 4539 1488\n"),
        (b"BT [(45) -20 (39) -300 (14)] TJ ET", b"4539 14\n"),
        (b"BT <34 35 3> Tj ET", b"450\n"),
        (b"BT (one) Tj 0 -14.5 Td (two) Tj 30 0 Td (three) Tj T* (four) Tj ET", b"one\ntwothree\nfour\n"),
        (rb"BT (a\(b\)\101\n\\ (nested) \q) Tj ET", b"a(b)A\n\\ (nested) q\n"),
        (b"BT (broken\\\nline) Tj ET", b"brokenline\n"),
        (b"BT 1.2.3 4.5.6 Td (x) Tj ET", b"x\n"),
        (b"no text (in here)", b"no text (in here)"),
        (b"", b""),
    ],
)
def test_strings_are_put_together_as_they_are_shown(content: bytes, text: bytes) -> None:
    assert read(content)[0] == text


def test_each_string_is_told_with_its_font() -> None:
    assert read(b"BT /F4 12 Tf <0014> Tj /F5 9 Tf (x) Tj ET")[1] == [(b"F4", b"\0\x14"), (b"F5", b"x"), (b"", b"\n")]


@pytest.mark.parametrize("step", [777, 5000, 1 << 20])
def test_a_long_stream_is_read_line_by_line_however_it_is_cut(step: int) -> None:
    content = b"BT\n" + b"(line of some length) Tj T*\n" * 6000
    assert read(content, step)[0] == b"line of some length\n" * 6000


def test_what_shows_no_text_passes_as_it_comes() -> None:
    pieces = [*PdfText(lambda *_: None).feed(bytes(5000))]
    assert pieces == [bytes(5000)]


@given(
    st.lists(
        st.sampled_from([b"BT ", b"(", b")", b"\\", b"<", b">", b"[", b"/F 1 Tf", b"1 0 Td ", b"-999", b"\xff"]),
        max_size=20,
    )
)
def test_hostile_bytes_are_some_text(pieces: list[bytes]) -> None:
    assert len(read(b"".join(pieces))[0]) <= 2 * sum(map(len, pieces)) + 1


@pytest.mark.parametrize("run", [b"1", b"1 ", b"1.", b"-", b"/a 1", b"1  ", b"123.1"])
def test_runs_of_anything_take_no_time(run: bytes) -> None:
    content = b"BT " + (run * 65_000)[:65_000]
    began_s = time.process_time()
    for _ in range(4):
        read(content)
        read(content.replace(b" ", b" " * 9))
    assert time.process_time() - began_s < 3
