"""Every key of a document is found on the line on which it stands."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.toml_lines import KeyPath, index

DOCUMENT = '''version = 1   # 1
[ defaults ]
action = "x" # a # in a comment
[[rule]]
name = """a
]b[ = "" """
port = [443, # c ]
  "8000-8999",
  { a = 1, "b.c" = [1,
    -2.5e3] },
]
a . b."c d" = \'\'\'x
\'\'\'
[[rule]]
name='x'  # no escape: \\
[rule.sub]
y = 1979-05-27 07:32:00
empty = []
[[rule.inner]]
z = true
[[rule.inner]]
[rule.inner.deep]
"k\\"q" = 0
'''


def lines_of(text: str) -> dict[KeyPath, int]:
    tomllib.loads(text)
    return dict(index(text)._lines)


def test_a_document_with_everything_in_it() -> None:
    assert lines_of(DOCUMENT) == {
        ("version",): 1,
        ("defaults",): 2,
        ("defaults", "action"): 3,
        ("rule",): 4,
        ("rule", 0): 4,
        ("rule", 0, "name"): 5,
        ("rule", 0, "port"): 7,
        ("rule", 0, "port", 0): 7,
        ("rule", 0, "port", 1): 8,
        ("rule", 0, "port", 2): 9,
        ("rule", 0, "port", 2, "a"): 9,
        ("rule", 0, "port", 2, "b.c"): 9,
        ("rule", 0, "port", 2, "b.c", 0): 9,
        ("rule", 0, "port", 2, "b.c", 1): 10,
        ("rule", 0, "a"): 12,
        ("rule", 0, "a", "b"): 12,
        ("rule", 0, "a", "b", "c d"): 12,
        ("rule", 1): 14,
        ("rule", 1, "name"): 15,
        ("rule", 1, "sub"): 16,
        ("rule", 1, "sub", "y"): 17,
        ("rule", 1, "sub", "empty"): 18,
        ("rule", 1, "inner"): 19,
        ("rule", 1, "inner", 0): 19,
        ("rule", 1, "inner", 0, "z"): 20,
        ("rule", 1, "inner", 1): 21,
        ("rule", 1, "inner", 1, "deep"): 22,
        ("rule", 1, "inner", 1, "deep", 'k"q'): 23,
    }


def test_windows_line_ends_count_once() -> None:
    assert lines_of(DOCUMENT.replace("\n", "\r\n")) == lines_of(DOCUMENT)


def test_what_has_no_line_of_its_own_has_that_of_what_holds_it() -> None:
    lines = index(DOCUMENT)
    assert lines.line(("rule", 1, "nothing", 3)) == 14
    assert lines.line(("nothing",)) == 1
    assert lines.line(()) == 1


@pytest.mark.parametrize(
    "text",
    ['""""a"""', '"""a\\""""""', "''''a'''''", '""', "''", '"""\n"""', '"a\\\\"', "'\\'", '"]#"', '"""\\\n  x"""'],
)
def test_strings_of_every_kind_end_where_they_end(text: str) -> None:
    document = f"a = [{text}, 1]\nb = 2"
    expected = 2 + text.count("\n")
    assert lines_of(document)[("b",)] == expected
    assert ("a", 1) in lines_of(document)


keys = st.one_of(
    st.text("abz_-09", min_size=1, max_size=4),
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters='"\\\x7f'), max_size=4
    ).map(lambda text: f'"{text}"'),
)
gaps = st.lists(st.sampled_from(["\n", " ", '# x ] } , = "\n', "\t"]), max_size=3).map("".join)
scalars = st.sampled_from(["1", "-0.5", "true", '"a # ] b"', "'='", '"""x\n]"""', "1979-05-27", "'''\n\n'''"])


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """A document with a key a line at least, and where each key and item was put."""
    text = ""
    expected: dict[KeyPath, int] = {}

    def line() -> int:
        return text.count("\n") + 1

    def put_value(path: KeyPath, depth: int) -> None:
        nonlocal text
        kind = draw(st.sampled_from(["scalar", "array", "inline"] if depth else ["scalar"]))
        if kind == "scalar":
            text += draw(scalars)
        elif kind == "inline":
            text += "{ k = "
            expected[(*path, "k")] = line()
            put_value((*path, "k"), 0)
            text += " }"
        else:
            text += "["
            for number in range(draw(st.integers(0, 3))):
                text += draw(gaps)
                expected[(*path, number)] = line()
                put_value((*path, number), depth - 1)
                text += draw(gaps) + ","
            text += draw(gaps) + "]"

    def put_pairs(path: KeyPath) -> None:
        nonlocal text
        for key in draw(st.lists(keys, max_size=3, unique_by=lambda key: key.strip('"'))):
            text += draw(gaps)
            full = (*path, key.strip('"'))
            expected[full] = line()
            text += f"{key} = "
            put_value(full, 2)
            text += draw(st.sampled_from(["\n", " # end\n"]))

    put_pairs(())
    for number in range(draw(st.integers(0, 3))):
        text += draw(gaps) + "\n"
        expected.setdefault(("TABLE",), line())
        expected[("TABLE", number)] = line()
        text += "[[TABLE]]\n"
        put_pairs(("TABLE", number))
    return text, expected


@given(documents())
def test_any_document(made: tuple[str, dict[KeyPath, int]]) -> None:
    text, expected = made
    assert lines_of(text) == expected
