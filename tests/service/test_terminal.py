"""What people see: printable, without colours or padding in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mitmsec.service.terminal import console, tell


def test_lines_are_long_where_there_is_no_terminal_and_as_told_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 160
    assert console(width_in_pipe=120).width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert console().width == 90


def table() -> Table:
    made = Table(box=None)
    made.add_column("a")
    made.add_column("b")
    made.add_row("long enough", Text("red", "red"))
    made.add_row("x", "")
    return made


def test_in_a_pipe_no_line_ends_in_spaces_and_nothing_is_coloured() -> None:
    out = Console(file=io.StringIO(), width=60)
    tell(out, "first", table())
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines()[0] == "first"
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "\x1b" not in text


def test_on_a_terminal_there_are_colours_unless_the_environment_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Console(file=io.StringIO(), width=60, force_terminal=True)
    tell(out, table())
    assert "\x1b[31mred" in out.file.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setenv("NO_COLOR", "1")
    out = Console(file=io.StringIO(), width=60, force_terminal=True)
    tell(out, table())
    assert "\x1b[31m" not in out.file.getvalue()  # type: ignore[attr-defined]
