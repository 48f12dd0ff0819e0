"""A table hands out what fits and notes what does not."""

from __future__ import annotations

import tomllib

import pytest

from mitmsec.core.model import Action
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_table import ConfigError, Notes, Table, key_text


def table(text: str) -> Table:
    return Table(tomllib.loads(text), (), Notes("f.toml", index(text)))


def notes(read: Table) -> list[str]:
    return [f"{error.line}:{error.key}:{error.message}" for error in read.notes.errors]


def test_values_of_the_right_type_come_out_without_a_note() -> None:
    read = table('a = "x"\nb = ["y", "z"]\nc = true\nd = "block"\n[e]\nf = "g"\n[[h]]\n[[h]]')
    assert read.text("a") == "x"
    assert read.texts("b") == ((0, "y"), (1, "z"))
    assert read.flag("c")
    assert read.choice("d", Action, None) is Action.BLOCK
    assert read.table("e").text("f") == "g"
    assert [one.path for one in read.tables("h")] == [("h", 0), ("h", 1)]
    read.close()
    assert notes(read) == []


def test_what_is_absent_is_empty_or_the_default() -> None:
    read = table("")
    assert (read.text("a"), read.texts("a"), read.flag("a"), list(read.tables("a"))) == (None, (), False, [])
    assert read.choice("a", Action, Action.BLOCK) is Action.BLOCK
    assert read.table("a").keys() == ()
    assert notes(read) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("true", "true"),
        ("false", "false"),
        ("1", "the number 1"),
        ("1.5", "the number 1.5"),
        ("[]", "a list"),
        ("{}", "a table"),
        ("1979-05-27", "a date or time"),
        ('" "', "an empty text"),
    ],
)
def test_a_text_that_is_none(value: str, kind: str) -> None:
    read = table(f"\na = {value}")
    assert read.text("a") is None
    assert notes(read) == [f"2:a:a text is wanted, not {kind}"]


def test_every_wrong_item_of_a_list_has_its_own_note() -> None:
    read = table('a = ["x",\n 1,\n ""]\nb = "x"\nc = []\nd = []')
    assert read.texts("a") == ((0, "x"),)
    assert read.texts("b") == read.texts("c") == read.texts("d", may_be_empty=True) == ()
    assert notes(read) == [
        "2:a[1]:a text is wanted, not the number 1",
        "3:a[2]:a text is wanted, not an empty text",
        '4:b:a list is wanted, not the text "x"',
        "5:c:an empty list can never match; leave the key out",
    ]


def test_words_are_of_the_list_or_for_later_or_wrong() -> None:
    read = table('a = "blok"\nb = "redact"\nc = 1\ne = "xyz"')
    assert read.choice("a", Action, Action.BYPASS) is Action.BYPASS
    assert read.choice("b", Action, Action.BYPASS, ("redact",)) is Action.BYPASS
    assert read.choice("c", Action, None) is None
    assert read.choice("d", Action, None) is None
    assert read.choice("e", Action, None) is None
    assert notes(read) == [
        '1:a:"blok" is not one of block, bypass, capture, decrypt; did you mean "block"?',
        '2:b:"redact" is not supported by this version',
        "3:c:a text is wanted, not the number 1",
        "1:d:is missing",
        '4:e:"xyz" is not one of block, bypass, capture, decrypt',
    ]


def test_tables_and_flags_of_other_types() -> None:
    read = table('a = 1\nb = [1]\nc = "x"\n[d]')
    assert read.table("a").keys() == ()
    assert list(read.tables("b")) == list(read.tables("d")) == []
    assert not read.flag("c")
    assert notes(read) == [
        "1:a:a table is wanted, not the number 1: write [a]",
        "2:b[0]:a table is wanted, not the number 1",
        "4:d:write [[d]], with two brackets: there can be several",
        '3:c:true or false is wanted, not the text "x"',
    ]


def test_keys_that_nobody_asked_for() -> None:
    read = table("reson = 1\nsigner = 2\nzzz = 3")
    read.text("reason")
    read.close(later=("signer",))
    assert sorted(notes(read)) == [
        '1:reson:unknown key; did you mean "reason"?',
        "2:signer:not supported by this version",
        "3:zzz:unknown key",
    ]


def test_an_error_reads_as_editors_expect() -> None:
    assert key_text(("rule", 2, "port", 0)) == "rule[2].port[0]"
    assert str(ConfigError(file="f", line=3, key="a.b", message="wrong")) == "f:3: a.b: wrong"
    assert str(ConfigError(file="f", line=3, key="", message="wrong")) == "f:3: wrong"
    assert str(ConfigError(file="f", line=0, key="", message="wrong")) == "f: wrong"


def test_a_rule_that_has_a_name_is_called_by_it() -> None:
    read = table('[[rule]]\nname = "banks"\nport = 1')
    (rule,) = read.tables("rule")
    rule.note("before its name is known", "port")
    rule.notes.named(rule.path, "banks")
    rule.note("wrong", "port", 0)
    rule.note("says nothing")
    assert [str(error) for error in read.notes.errors] == [
        "f.toml:3: rule[0].port: before its name is known",
        'f.toml:3: rule "banks": port[0]: wrong',
        'f.toml:1: rule "banks": says nothing',
    ]
    assert [error.key for error in read.notes.errors] == ["rule[0].port", "rule[0].port[0]", "rule[0]"]
