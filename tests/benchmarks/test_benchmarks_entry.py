"""However a benchmark ends, its status says so; what it measured can be read again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import entry, host
from benchmarks.figures import Check, Row
from benchmarks.host import Facts, Failed
from benchmarks.measure import Plan

FACTS = Facts("6.18", "x86_64", "a CPU", 2, 24.0, (0.5, 0.4, 0.3), "3.13", {"wrk": "4.1", "curl": "8", "other": "1"})
PLAN = Plan(rounds=3, window_s=2, singles=1, huge=False)


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def measure() -> NoReturn:
        raise error

    return measure


def test_what_was_measured_is_done_and_says_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.ran(lambda: None) == 0
    assert capsys.readouterr().err == "took 0 s\n"


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (Failed("wrk ended"), 1, "benchmark: wrk ended\n"),
        (LookupError("no nginx"), 1, "benchmark: no nginx\n"),
        (KeyboardInterrupt(), 130, "interrupted; everything was removed\n"),
    ],
)
def test_each_way_to_end_early_is_told(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.ran(raising(error)) == status
    assert capsys.readouterr().err == told


def test_nothing_is_begun_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert entry.ran(raising(AssertionError())) == 3
    assert "run it as root" in capsys.readouterr().err


def test_the_figures_are_written_with_how_they_were_judged(tmp_path: Path) -> None:
    entry.write_json(None, FACTS, PLAN, [], [])
    path = tmp_path / "new/figures.json"
    entry.write_json(path, FACTS, PLAN, [Row("direct", {})], [Check("share", 0.9, True, 0.8)])
    whole = json.loads(path.read_text())
    assert (whole["machine"]["cores"], whole["plan"]["rounds"], whole["rows"][0]["variant"]) == (2, 3, "direct")
    assert whole["checks"] == [{"name": "share", "limit": 0.9, "at_least": True, "reached": 0.8, "passed": False}]


def test_the_machine_is_told_with_the_programs_that_matter() -> None:
    told = entry.machine(FACTS, PLAN, ["wrk", "curl"])
    assert "2 cores (a CPU), 24 GiB, load average before 0.5, Python 3.13, wrk 4.1, curl 8; 3 rounds of 2 s." in told
    assert "other" not in told


def test_every_benchmark_has_the_common_options() -> None:
    options = entry.parser("benchmarks", "measures", quick="short").parse_args(["--quick", "--json", "a"])
    assert (options.quick, options.json, options.report) == (True, Path("a"), None)


def test_what_is_measured_is_told_where_that_can_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert host.commit() == [], "no checkout"
    subprocess.run(["git", "init", "-q", "."], check=True)
    (tmp_path / "file").touch()
    subprocess.run(["git", "add", "file"], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.test"]
    subprocess.run(["git", *author, "commit", "-q", "-m", "first"], check=True)
    (clean,) = host.commit()
    assert re.fullmatch(r"commit [0-9a-f]{7,40}", clean)
    (tmp_path / "file").write_text("changed")
    assert host.commit() == [f"{clean}-dirty"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.commit() == [], "no git"
