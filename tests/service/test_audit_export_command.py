"""`mitmsec audit export` as people and scripts use it: formats, files, what goes together, and what goes wrong."""

from __future__ import annotations

import csv
import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from audit_cli import lines, mitmsec, tamper
from audit_events import connection, log_of
from click.testing import Result
from export_events import SEEN
from syslog_stage import House, Manner

from mitmsec.audit.event import Kind
from mitmsec.audit.export import Format
from mitmsec.audit.export.cursor import Cursor
from mitmsec.service.export_cursor import CursorFile


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    (folder / "log").mkdir()
    log_of(folder / "log", SEEN)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("collector"))


def export(state: Path, *words: object) -> Result:
    return mitmsec(state, "export", *map(str, words))


def seqs(data: bytes | str) -> list[int]:
    return [json.loads(line)["seq"] for line in data.splitlines()]


def test_json_lines_are_what_list_prints(state: Path) -> None:
    assert export(state).stdout_bytes == mitmsec(state, "list", "--json").stdout_bytes


@pytest.mark.parametrize("form", Format)
def test_every_format_has_every_event_on_a_line_of_its_own(state: Path, form: Format) -> None:
    result = export(state, "--format", form)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == len(SEEN) + (form is Format.CSV)


def test_csv_reads_back(state: Path) -> None:
    text = export(state, "--format", "csv").stdout_bytes.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["seq"] for row in rows] == [str(seq) for seq in range(len(SEEN))]


@pytest.mark.parametrize(
    "words", [["--kind", "finding"], ["--host", "nowhere.example"], ["--limit", "2"], ["--text", "eicar"]], ids=" ".join
)
def test_filters_are_those_of_list(state: Path, words: list[str]) -> None:
    listed = [event["seq"] for event in lines(mitmsec(state, "list", "--json", *words))]
    result = export(state, *words)
    assert seqs(result.stdout) == listed
    assert ("no event matches" in result.stderr) == (not listed)


def test_a_file_is_new_and_ours_alone(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert export(state, "--output", out).exit_code == 0
    assert (seqs(out.read_bytes()), out.stat().st_mode & 0o777) == ([*range(len(SEEN))], 0o600)
    refused = export(state, "--output", out)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "is there already" in refused.stderr
    assert export(state, "--output", out, "--force", "--kind", Kind.CA).exit_code == 0
    assert len(out.read_bytes().splitlines()) == 2


def test_a_cursor_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN[:5])
    out, cursor = tmp_path / "out.csv", tmp_path / "cursor"
    words = ("--format", "csv", "--output", out, "--cursor", cursor)
    assert export(tmp_path, *words).exit_code == 0
    log_of(tmp_path / "log", SEEN[5:])
    assert export(tmp_path, *words).exit_code == 0
    assert export(tmp_path, *words).exit_code == 0
    with out.open(newline="") as file:
        assert [row["seq"] for row in csv.DictReader(file)] == [str(seq) for seq in range(len(SEEN))]
    assert json.loads(cursor.read_text())["at"]["seq"] == len(SEEN) - 1


def test_a_cursor_with_filters_does_not_look_twice_at_what_did_not_match(state: Path, tmp_path: Path) -> None:
    out, cursor = tmp_path / "out", tmp_path / "cursor"
    assert export(state, "--kind", "finding", "--output", out, "--cursor", cursor).exit_code == 0
    assert len(out.read_bytes().splitlines()) == 3
    assert json.loads(cursor.read_text())["at"]["seq"] == len(SEEN) - 1


def test_a_cursor_is_of_one_log_and_one_place(state: Path, tmp_path: Path) -> None:
    out, cursor = tmp_path / "out", tmp_path / "cursor"
    assert export(state, "--output", out, "--cursor", cursor).exit_code == 0
    elsewhere = export(state, "--output", tmp_path / "other", "--cursor", cursor)
    assert (elsewhere.exit_code, "says how far the export to" in elsewhere.stderr) == (2, True)
    unknown = export(state, "--output", out, "--cursor", tmp_path / "new")
    assert (unknown.exit_code, "and its cursor is not" in unknown.stderr) == (2, True)
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [connection(f"other-{number}") for number in range(3)])
    shorter = export(tmp_path, "--output", out, "--cursor", cursor)
    assert (shorter.exit_code, "this log has 3" in shorter.stderr) == (1, True)
    log_of(tmp_path / "log", [connection(f"other-{number}") for number in range(30)])
    another = export(tmp_path, "--output", out, "--cursor", cursor)
    assert (another.exit_code, f"event {len(SEEN) - 1} is not the one" in another.stderr) == (1, True)
    assert len(out.read_bytes().splitlines()) == len(SEEN)


def test_a_log_that_was_begun_anew_has_another_name(state: Path, tmp_path: Path) -> None:
    out, cursor = tmp_path / "out", tmp_path / "cursor"
    assert export(state, "--output", out, "--cursor", cursor).exit_code == 0
    cursor.write_text(cursor.read_text().replace("mitmsec.log/test", "mitmsec.log/before"))
    result = export(state, "--output", out, "--cursor", cursor)
    assert (result.exit_code, "is of the log mitmsec.log/before; this one is" in result.stderr) == (1, True)


def test_what_is_no_cursor_is_not_overwritten(state: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    result = export(state, "--output", tmp_path / "out", "--cursor", mine)
    assert (result.exit_code, "is no cursor" in result.stderr, mine.read_text()) == (2, True, "precious")


def test_a_cursor_that_cannot_be_written_ends_it(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: CursorFile, cursor: Cursor) -> None:
        if cursor.at.seq >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, cursor)

    real = CursorFile.keep
    words = ("--output", tmp_path / "out", "--cursor", tmp_path / "cursor")
    with monkeypatch.context() as patched:
        patched.setattr(CursorFile, "keep", full)
        result = export(state, *words)
    assert (result.exit_code, "cursor cannot be written: No space left" in result.stderr) == (3, True)
    assert export(state, *words).exit_code == 0
    assert seqs((tmp_path / "out").read_bytes()) == [*range(len(SEEN))] * 2


@pytest.mark.parametrize(
    "words",
    [
        ["--output", "x", "--to", "syslog+tls://h"],
        ["--force"],
        ["--output", "x", "--cursor", "c", "--force"],
        ["--ca", "x"],
        ["--trust-tcp", "--output", "x"],
        ["--to", "syslog+tls://h", "--client-key", "k"],
        ["--to", "syslog+tls://h", "--format", "csv"],
        ["--cursor", "c"],
        ["--output", "x", "--follow"],
        ["--output", "x", "--cursor", "c", "--limit", "1"],
        ["--format", "xml"],
        ["--to", "http://h"],
        ["--to", "syslog+tls://h", "--ca", "/nowhere/roots.pem"],
        ["--to", "syslog+tls://h", "--client-certificate", "/nowhere/client.pem"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_wrong_usage(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = export(state, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip()
    assert list(tmp_path.iterdir()) == []


def test_a_syslog_server_gets_every_event_in_the_format_that_was_asked_for(state: Path, house: House) -> None:
    with house.collector() as collector:
        to = ("--to", f"syslog+tls://127.0.0.1:{collector.port}", "--ca", house.roots)
        assert export(state, *to).exit_code == 0
        assert export(state, *to, "--format", "cef").exit_code == 0
    messages = [message.partition(b"] ")[2] for message in collector.messages]
    assert [json.loads(message)["seq"] for message in messages[: len(SEEN)]] == [*range(len(SEEN))]
    assert {message[:6] for message in messages[len(SEEN) :]} == {b"CEF:0|"}


def test_with_a_cursor_what_was_not_settled_is_sent_once_more(state: Path, house: House, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    with house.collector(Manner.SILENT) as collector:
        words = ("--to", f"syslog+tls://127.0.0.1:{collector.port}", "--ca", house.roots, "--cursor", cursor)
        failed = export(state, *words)
        assert failed.exit_code == 3
        assert "did not answer close_notify" in failed.stderr
        assert json.loads(cursor.read_text())["at"]["seq"] == -1
        assert export(state, *words).exit_code == 0
        assert export(state, *words).exit_code == 0
    assert (len(collector.messages), collector.connections) == (2 * len(SEEN), 2)


def test_a_log_with_a_broken_event_is_exported_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN)
    tamper(tmp_path, "UPDATE events SET envelope = 'x' WHERE seq = 9")
    result = export(tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "audit verify" in result.stderr
    assert not (tmp_path / "out").exists()


def test_no_log_is_told(tmp_path: Path) -> None:
    assert export(tmp_path).exit_code == 1
    assert export(tmp_path, "--output", tmp_path / "o", "--cursor", tmp_path / "c").exit_code == 1
    assert not (tmp_path / "o").exists()


def test_a_full_disk_ends_it_in_one_line(state: Path) -> None:
    command = [sys.executable, "-m", "mitmsec", "audit", "export", "--state", str(state)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, "mitmsec: stdout: no space left on device")


def test_to_list_events_takes_neither_formats_nor_tls() -> None:
    code = (
        "import sys, mitmsec.service.audit_commands; "
        "print(*sorted({'ssl', 'mitmproxy', 'mitmsec.audit.export.ocsf'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"
