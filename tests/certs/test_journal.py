"""The journal of stores: on disk before anything is done, and gone when nothing is left to undo."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from test_plans import STORES
from test_truststore_plan import ROOT

from mitmsec_certs.truststore.journal import Entry, Journal, Phase
from mitmsec_certs.truststore.tree import Kind, Node


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "trust")


def entry(number: int) -> Entry:
    return Entry(
        number=number,
        store=STORES[number % len(STORES)],
        root=ROOT,
        phase=Phase.ADDING,
        since="2026-01-02T03:04:05Z",
        entries=frozenset({"certificate ab"}),
        before={"/etc/x": Node(Kind.FILE, 0o644, 0, 0, "ab")},
    )


def test_entries_are_read_as_they_were_written_in_their_order(journal: Journal) -> None:
    assert journal.entries() == []
    with journal.held():
        written = []
        for _ in range(11):
            one = entry(journal.new())
            journal.keep(one.number, {"ab": b"content"})
            journal.write(one)
            written.append(one)
        assert Journal(journal.folder).entries() == written
        assert journal.contents(3) == {"ab": b"content"}
        journal.remove(written[3])
        assert journal.entries() == written[:3] + written[4:]


def test_a_number_is_not_given_twice_while_a_later_one_is_there(journal: Journal) -> None:
    with journal.held():
        for number in (1, 2):
            assert journal.new() == number
            journal.write(entry(number))
        journal.remove(entry(1))
        assert journal.new() == 3


def test_what_has_no_note_was_never_begun(journal: Journal) -> None:
    with journal.held():
        journal.keep(journal.new(), {"ab": b"content"})
        assert journal.entries() == []
        journal.vanish()
    assert not journal.folder.exists()


def test_the_folder_stays_as_long_as_an_entry_does(journal: Journal) -> None:
    with journal.held():
        journal.write(entry(journal.new()))
        journal.vanish()
        assert journal.entries() == [entry(1)]


def test_who_is_trusted_is_no_secret_and_what_lay_there_is_one(journal: Journal) -> None:
    """A browser's key database is among it."""
    before = os.umask(0o077)
    try:
        with journal.held():
            number = journal.new()
            journal.keep(number, {"ab": b"secret"})
            journal.write(entry(number))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in journal.folder.rglob("*")}
    assert modes == {"lock": 0o600, "0001": 0o755, "entry.json": 0o644, "before": 0o700, "ab": 0o600}
    assert journal.folder.stat().st_mode & 0o777 == 0o755


def test_one_after_the_other_changes_stores(journal: Journal) -> None:
    code = f"""
from pathlib import Path
from mitmsec_certs.truststore.journal import Journal
print("waits", flush=True)
with Journal(Path({str(journal.folder)!r})).held():
    print(Path({str(journal.folder)!r}, "done").exists())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        with journal.held():
            assert other.stdout.readline() == "waits\n"
            time.sleep(0.2)
            (journal.folder / "done").touch()
        assert other.stdout.readline() == "True\n"


def test_an_entry_that_nobody_wrote_is_an_error(journal: Journal) -> None:
    with journal.held():
        journal.write(entry(journal.new()))
        (journal.folder / "0001/entry.json").write_text("{}")
        with pytest.raises(msgspec.ValidationError):
            journal.entries()
