"""What is no TOML is said in the words of who writes a policy, not in those of the reader."""

from __future__ import annotations

import tomllib

import pytest

from mitmsec.core.toml_syntax import KEY_PARTS_LIMIT, complaint, endless_key


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\na = 2", 2, "this name has a value already"),
        ("[a]\n[a]", 2, "a stands here a second time; for several write [[a]] each time"),
        ("[a.b]\n[a.b]", 2, "a.b stands here a second time"),
        ("a = []\n[[a]]", 2, "a was complete where it was first written"),
        ("a = {b = 1, b = 2}", 1, "b stands twice within these braces"),
        ("a = b", 1, "a text without its quotes"),
        ("a", 1, "a key needs = and a value"),
        ("= 1", 1, "neither a key, nor a [table], nor a comment"),
        ("[[a]\n", 1, "[[ has no ]]"),
        ("[a\n", 1, "[ has no ]"),
        ("a = [1 2]", 1, "a comma is missing in it"),
        ("a = {b = 1 c = 2}", 1, "a table has no }, or a comma is missing in it"),
        ('a = "x\n', 1, "a text has no closing quotes"),
        ('a = "C:\\Program Files"', 1, "a backslash is written twice"),
        ("a = 1 b", 1, "something follows the value on its line"),
    ],
)
def test_each_mistake_has_its_words(text: str, line: int, words: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    found = complaint(str(caught.value))
    assert words in found.words
    assert (found.line, found.column is None) in {(line, False), (None, True)}


def test_what_is_not_known_is_passed_on_with_its_place() -> None:
    assert complaint("Something new (at line 3, column 7)") == (3, 7, "Something new")
    assert complaint("Something new (at end of document)") == (None, None, "Something new")
    assert complaint("Something new") == (None, None, "Something new")


LONG, SHORT = (".".join(["a"] * parts) for parts in (KEY_PARTS_LIMIT + 1, KEY_PARTS_LIMIT))
APOSTROPHES = "'" * 3
QUOTED = " . ".join(['"a.#"', "'b\"'"] * KEY_PARTS_LIMIT)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{LONG} = 1", 1),
        (f"a = 1\n\n[[{LONG}]]\n", 3),
        (f"a = 1 # {SHORT}\nb = {{ {QUOTED} = 1 }}", 2),
        (f'a = """\n\\""" " "" \n"""\n{LONG} = 1', 4),
        (f"a = '''\n' '' \\\n''''\n{LONG} = 1", 4),
        (f'a = "\\""\nb = \'"\'\n{LONG} = 1', 3),
        (f'"{LONG}".{LONG} = 1', 1),
    ],
)
def test_a_key_of_a_hundred_parts_is_found_before_it_is_read(text: str, line: int) -> None:
    assert endless_key(text) == line


@pytest.mark.parametrize(
    "text",
    [
        f"{SHORT} = 1",
        f'a = "{LONG}"\nb = "\\"{LONG}"',
        f"a = '{LONG}\\'\nb = {{ c = '{LONG}' }}",
        f'a = """\n{LONG}\n"""""\nb = {APOSTROPHES}\n{LONG}\n{APOSTROPHES}\n',
        f"a = 1 # {LONG}",
        f'"{LONG}".b = [{", ".join(["1.5"] * KEY_PARTS_LIMIT)}, "{LONG}"]',
    ],
)
def test_dots_in_texts_comments_and_numbers_make_no_key(text: str) -> None:
    tomllib.loads(text)
    assert endless_key(text) is None


@pytest.mark.parametrize("bytes_", ["a", " ", "a ", '"', '\\"', "'", "a\t", '"""', APOSTROPHES, '"\\', "a.", ". "])
def test_no_text_takes_long_to_look_through(bytes_: str) -> None:
    """A tenth of a megabyte of each, after a line that has it looked through; a quadratic search would take minutes."""
    assert endless_key(f'# {LONG}\n"{bytes_ * (100_000 // len(bytes_))}') is None
    assert endless_key(f"# {LONG}\n{bytes_ * (100_000 // len(bytes_))}") == (2 if bytes_ == "a." else None)
