"""Conditions on names as a policy file has them: `host`, with patterns and lists, and `category`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mitmsec.core.host_lists import CATEGORY, FILE, HostList
from mitmsec.core.list_text import read_names
from mitmsec.core.names import parse_name, written_name
from mitmsec.core.toml_table import ConfigError, Notes, Table, meant


class Lists(Protocol):
    """What these conditions need (mitmsec.core.policyfile.Context)."""

    notes: Notes
    lists: dict[str, HostList]

    @property
    def categories(self) -> Mapping[str, Callable[[], str]]: ...
    def text_of(self, table: Table, file: str, *key: str | int) -> str | None: ...


def read_hosts(table: Table, context: Lists) -> tuple[str, ...]:
    """The entries under `host`: patterns, and lists by their names, which are among the context's then."""
    entries: dict[str, None] = {}
    before = len(context.notes.errors)
    for place, text in table.texts("host"):
        if text.startswith(FILE):
            if _read_file(table, place, text, context):
                entries[text] = None
            continue
        wildcard = "*." if text.startswith("*.") else ""
        try:
            entries[wildcard + written_name(text.removeprefix("*."))] = None
        except ValueError as error:
            table.note(f"{error}; {_host_meant(text)}", "host", place)
    if "host" in table and not entries and len(context.notes.errors) == before:
        table.note("the lists hold no names, so this can never match", "host")
    return tuple(entries)


def read_patterns(table: Table, context: Lists) -> tuple[str, ...]:
    """As `read_hosts`, with the names of lists, and what is below them, as patterns: for short ones."""
    found: dict[str, None] = {}
    for entry in read_hosts(table, context):
        if entry.startswith(FILE):
            names = context.lists[entry].names()
            found.update(dict.fromkeys(pattern for name in names for pattern in (name, f"*.{name}")))
        else:
            found[entry] = None
    return tuple(found)


def read_categories(table: Table, context: Lists) -> tuple[str, ...]:
    """The words under `category`; the lists are among the context's then."""
    found: dict[str, None] = {}
    for place, word in table.texts("category"):
        if word not in context.categories:
            known = ", ".join(sorted(context.categories))
            table.note(f'"{word}" is not one of {known}{meant(word, list(context.categories))}', "category", place)
            continue
        found[word] = None
        name = CATEGORY + word
        if name not in context.lists:
            context.lists[name] = HostList.of(name, read_names(context.categories[word]()).text)
    return tuple(found)


def _read_file(table: Table, place: int, name: str, context: Lists) -> bool:
    """Whether there is such a list, with names in it. A file that gave none is read wherever it is named."""
    if name in context.lists:
        return True
    file = name.removeprefix(FILE)
    text = context.text_of(table, file, "host", place)
    if text is None:
        return False
    read = read_names(text)
    for line, message in read.errors:
        context.notes.errors.append(ConfigError(file=file, line=line, key="", message=message))
    if read.text:
        context.lists[name] = HostList.of(name, read.text)
    return bool(read.text)


def _host_meant(text: str) -> str:
    if not text.strip("*."):
        return "for every host leave host out"
    bare = text.partition("://")[2] or text
    name = bare.partition("/")[0].partition(":")[0].lstrip("*.")
    if name != text and parse_name(name):
        return f'did you mean "{name}", or "*.{name}" for what is below it?'
    return 'wanted: "name", "*.suffix" or "@file"'
