"""`mitmsec apps` as people and scripts use it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import sys
import termios
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from audit_events import CURL, connection, log_of, request
from click.testing import CliRunner, Result
from rich.console import Console

from mitmsec.audit.event import ConnectionSeen, Outcome
from mitmsec.cli import cli
from mitmsec.core.model import Action, Confidence, Process
from mitmsec.service import apps_command

SEEN = [
    request("flow-0"),
    connection("flow-0"),
    connection("flow-1"),
    connection("flow-2", host="bank.example", action=Action.BLOCK, outcome=Outcome.BLOCKED),
]
ALWAYS = ("--since", "5200w")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN)
    return tmp_path


def apps(state: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["apps", *words, "--state", str(state)], env={"COLUMNS": "120"})


def test_a_program_stands_above_what_it_has_connected_to(state: Path) -> None:
    heading, first, second = apps(state, *ALWAYS).stdout.splitlines()
    assert heading.startswith("/usr/bin/curl  pid ")
    assert "by connect_hook" in heading
    assert "× 2" in first
    assert second.split()[:4] == ["→", "bank.example:443", "block", "blocked"]


def test_as_json_each_process_is_one_object(state: Path) -> None:
    (line,) = apps(state, *ALWAYS, "--json").stdout.splitlines()
    found = json.loads(line)
    assert found["process"]["exe"] == "/usr/bin/curl"
    assert [one["count"] for one in found["connections"]] == [2, 1]


def test_who_is_not_meant_is_not_told(state: Path) -> None:
    assert apps(state, *ALWAYS, "--app", "firefox", "--json").stdout == ""
    assert "--since looks further back" in apps(state, *ALWAYS, "--app", "firefox").stdout


@pytest.mark.parametrize("words", [["--watch"], ["--watch", "--json"]])
def test_watching_is_for_terminals(state: Path, words: list[str]) -> None:
    result = apps(state, *words)
    assert result.exit_code == 2
    assert "--watch is for a terminal" in result.stderr


def test_where_there_is_no_log_that_is_told(tmp_path: Path) -> None:
    assert apps(tmp_path).exit_code == 1


# --- on a terminal ----------------------------------------------------------------------------------------------------
LONG = "/home/alice/a/long/way/to/some/output/directory/release/bin/uploader"
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def program(path: str, pid: int, host: str = "api.example.com", count: int = 1) -> list[ConnectionSeen]:
    process = msgspec.structs.replace(CURL, exe=path, pid=pid)
    return [connection(f"{pid}-{place}", process=process, host=host) for place in range(count)]


def lines_of(width: int, height: int, *seen: ConnectionSeen, folder: Path) -> list[str]:
    """What stands on a terminal of that size."""
    (folder / "log").mkdir()
    log_of(folder / "log", seen)
    found = apps_command._found(folder, datetime(2000, 1, 1, tzinfo=UTC), None)
    out = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False)
    out.print(apps_command._screen(found, height))
    assert isinstance(out.file, io.StringIO)
    return SEQUENCE.sub("", out.file.getvalue()).splitlines()


def test_no_line_is_broken_and_columns_stand_below_each_other(tmp_path: Path) -> None:
    seen = [*program("/usr/bin/a", 7, "a.example"), *program(LONG, 8, "a-name-that-is-far-too-long.cloud.example.com")]
    lines = lines_of(80, 24, *seen, folder=tmp_path)
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert lines[0] == "2 programs, 2 connections · Ctrl-C ends"
    assert lines[1].startswith("…")
    assert "/release/bin/uploader  pid 8 · alice" in lines[1]
    assert lines[2].index("decrypt") == lines[4].index("decrypt")
    assert "too-l" in lines[2]
    assert "…  decrypt" in lines[2]


def test_who_was_heard_of_last_stands_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    seen = [one for number in range(1, 9) for one in program(f"/usr/bin/tool{number}", number)]
    lines = lines_of(100, 8, *seen, folder=tmp_path)
    assert lines[0] == "8 programs, 8 connections · the newest 3 are shown · Ctrl-C ends"
    assert [line.split()[0] for line in lines[1::2]] == ["/usr/bin/tool8", "/usr/bin/tool7", "/usr/bin/tool6"]
    assert len(lines) <= 8


def test_of_udp_no_bytes_are_told_for_none_were_counted(tmp_path: Path) -> None:
    (tcp,) = program("/usr/bin/a", 7)
    udp = msgspec.structs.replace(tcp, flow="udp", host="dns.example", bytes_sent=None, bytes_received=None)
    lines = lines_of(120, 8, tcp, udp, folder=tmp_path)
    assert [" sent," in line for line in lines if ".com" in line or ".example" in line] == [True, False]


def test_nobody_known_is_said_without_a_source_that_there_is_not(tmp_path: Path) -> None:
    nobody = Process(pid=0, source="", confidence=Confidence.UNKNOWN)
    lines = lines_of(80, 24, connection(process=nobody), folder=tmp_path)
    assert lines[0].startswith("1 program, ")
    assert lines[1] == "unknown program  unknown"


def test_watching_follows_the_log_and_the_size_of_the_terminal_until_ctrl_c(state: Path) -> None:
    command = [sys.executable, "-m", "mitmsec", "apps", "--watch", *ALWAYS, "--state", str(state)]
    child, terminal = pty.fork()
    if not child:
        os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": ""})
    termios.tcsetwinsize(terminal, (24, 80))
    told = read_until(terminal, "bank.example")
    assert "\x1b[?1049h" in told, "a screen of its own"
    termios.tcsetwinsize(terminal, (24, 200))
    log_of(state / "log", program("/opt/" + 30 * "deep/" + "tool", 9))
    read_until(terminal, "/opt/" + 30 * "deep/" + "tool")
    os.write(terminal, b"\x03")
    assert "\x1b[?1049l" in read_until(terminal, None), "the screen is given back"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


def read_until(terminal: int, wanted: str | None) -> str:
    """What was written up to `wanted`, or until the end."""
    told = b""
    while wanted is None or wanted not in SEQUENCE.sub("", told.decode(errors="replace")):
        assert select.select([terminal], [], [], 20)[0], told[-500:]
        try:
            told += os.read(terminal, 65536)
        except OSError:  # nobody has the other end any more
            assert wanted is None, told[-500:]
            break
    return told.decode(errors="replace")
