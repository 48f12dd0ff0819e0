"""Conditions on names in a policy file: patterns, lists of files, categories."""

from __future__ import annotations

import tomllib

import pytest

from mitmsec.core.host_lists import HostList
from mitmsec.core.names_section import read_categories, read_hosts, read_patterns
from mitmsec.core.policyfile import Context
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_table import Notes, Table

FILES = {
    "banks.txt": "# ours\nBank.example\n",
    "empty.txt": "#\n",
    "bad.txt": "a.example\na b\n",
    "all-bad.txt": "a b\n",
}


class Opened:
    """A table, and how often each file was read for it."""

    def __init__(self, text: str) -> None:
        self.read: list[str] = []
        notes = Notes("f.toml", index(text))
        self.table = Table(tomllib.loads(text), (), notes)
        self.context = Context(
            notes=notes, read_list=self._read, inspectors=(), categories={"finance": lambda: "# head\nbank.example"}
        )

    def _read(self, name: str) -> str:
        self.read.append(name)
        return FILES[name]

    @property
    def errors(self) -> list[str]:
        return [f"{error.file}:{error.line}: {error.key}: {error.message}" for error in self.context.notes.errors]


def test_a_list_stands_once_in_the_policy_and_by_its_name_in_the_rules() -> None:
    opened = Opened('host = ["a.example", "@banks.txt", "*.B.example", "@banks.txt"]')
    assert read_hosts(opened.table, opened.context) == ("a.example", "@banks.txt", "*.b.example")
    assert read_hosts(opened.table, opened.context)[1] == "@banks.txt"
    assert (opened.read, opened.errors) == (["banks.txt"], [])
    assert opened.context.lists == {"@banks.txt": HostList.of("@banks.txt", "bank.example")}


@pytest.mark.parametrize(
    ("text", "entries", "errors"),
    [
        ('host = ["@empty.txt"]', (), ["f.toml:1: host: the lists hold no names, so this can never match"]),
        ('host = ["a", "@empty.txt"]', ("a",), []),
        ('host = ["@bad.txt"]', ("@bad.txt",), ['bad.txt:2: : "a b" is not a host name']),
        ('host = ["@all-bad.txt"]', (), ['all-bad.txt:1: : "a b" is not a host name']),
    ],
)
def test_what_is_wrong_with_a_list_stands_at_its_own_line(text: str, entries: tuple[str], errors: list[str]) -> None:
    opened = Opened(text)
    assert (read_hosts(opened.table, opened.context), opened.errors) == (entries, errors)


def test_where_lists_cannot_be_their_names_are_patterns() -> None:
    opened = Opened('host = ["@banks.txt", "x.test"]')
    assert read_patterns(opened.table, opened.context) == ("bank.example", "*.bank.example", "x.test")


def test_a_category_is_one_of_the_shipped_lists() -> None:
    opened = Opened('category = ["finance", "finanz", "finance"]')
    assert read_categories(opened.table, opened.context) == ("finance",)
    assert opened.context.lists["category:finance"].text == "bank.example"
    assert opened.errors == ['f.toml:1: category[1]: "finanz" is not one of finance; did you mean "finance"?']
