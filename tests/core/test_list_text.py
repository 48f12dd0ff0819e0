"""The text of list files: the quick way through whole blocks and the slow one through lines say the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmsec.core import list_text
from mitmsec.core.list_text import SHOWN_ERRORS, read_names
from mitmsec.core.names import written_name

LINES = st.one_of(
    st.sampled_from(
        ["a.example", "B.Example ", "# c", "", " x.test # c", "1.2.3.4", "a..b", "*.a", "bücher.test", "a.", "0x",
         "a.7", "0xg", "7up", "a" * 63, "a" * 64, "a." * 126 + "b", "a." * 127 + "b", "_dmarc.a", "-", "ß.test", "a b",
         "\u212a"]
    ),
    st.text(alphabet="ab0x.-_#A\u00e4 ", max_size=9),
)  # fmt: skip


def line_by_line(lines: list[str]) -> tuple[list[str], list[int]]:
    names, wrong = [], []
    for number, line in enumerate(lines, 1):
        written = line.partition("#")[0].strip()
        try:
            names += [written_name(written)] if written else []
        except ValueError:
            wrong.append(number)
    return names, wrong


@given(st.lists(LINES, max_size=40), st.sampled_from(["\n", "\r\n"]), st.sampled_from([1, 20, 1 << 15]))
@example(["a." * 127 + "b"], "\n", 1)
@example(["a." * 126 + "b", "c"], "\n", 1 << 15)
@example(["a.example", "a.7"], "\n", 1 << 15)
@example(["a.0x", "b.example"], "\n", 1 << 15)
def test_blocks_of_names_are_read_as_their_lines_are(lines: list[str], end: str, block_chars: int) -> None:
    names, wrong = line_by_line(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_text, "BLOCK_CHARS", block_chars)
        patch.setattr(list_text, "SHOWN_ERRORS", 100)
        read = read_names(end.join(lines))
    assert [name for name in read.text.split("\n") if name] == names
    assert [line for line, _ in read.errors] == wrong


def test_a_mark_of_an_editor_is_no_part_of_the_first_name() -> None:
    assert read_names("\ufeffa.example\n") == ("a.example", ())


def test_of_many_errors_the_first_are_told_and_the_others_counted() -> None:
    read = read_names("good.example\n" + "not a name\n" * (SHOWN_ERRORS + 5))
    assert [line for line, _ in read.errors[:-1]] == list(range(2, SHOWN_ERRORS + 2))
    assert read.errors[-1] == (SHOWN_ERRORS + 1, f"5 further lines after this one are wrong, {SHOWN_ERRORS + 5} in all")
    assert read.text == "good.example"


@pytest.mark.parametrize("line", ["0.0.0.0 ads.example", "127.0.0.1\tads.example  # why", "::1 a.test b.test"])
def test_a_line_of_a_hosts_file_is_told_as_one(line: str) -> None:
    found = read_names(f"a.example\n{line}")
    ((number, why),) = found.errors
    assert number == 2
    assert why.endswith("is a line of a hosts file; write its names without the address, one a line")
