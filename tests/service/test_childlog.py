"""A child's output is kept line by line, named, and within bounds, whatever the child makes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mitmsec.service import childlog
from mitmsec.service.childlog import ChildOutput, LogFile, OwnWords


def told(story: Callable[[int, ChildOutput, list[str]], Awaitable[None]]) -> list[str]:
    """The lines that were kept of what `story` wrote into the pipe."""
    lines: list[str] = []

    async def tell() -> None:
        reading, writing = os.pipe()
        output = ChildOutput(reading, "worker 7", lines.append, asyncio.get_running_loop())
        await story(writing, output, lines)

    asyncio.run(tell())
    return lines


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def test_each_line_has_its_childs_name_and_no_control_characters() -> None:
    async def story(pipe: int, output: ChildOutput, lines: list[str]) -> None:
        os.write(pipe, b"one\n\ntwo \x1b[31mred\xff\nunfinished")
        os.close(pipe)
        await until(lambda: len(lines) == 3)
        output.close()

    assert told(story) == ["worker 7: one", r"worker 7: two \x1b[31mred\xff", "worker 7: unfinished"]


def test_a_line_may_come_in_pieces_and_is_cut_when_it_is_too_long() -> None:
    async def story(pipe: int, output: ChildOutput, lines: list[str]) -> None:
        for piece in (b"be", b"gun\n", b"x" * 5000, b"y" * 5000, b"\nnext\n"):
            os.write(pipe, piece)
            await asyncio.sleep(0)
        await until(lambda: len(lines) == 3)
        os.close(pipe)
        output.close()

    assert told(story) == ["worker 7: begun", f"worker 7: {'x' * childlog.LINE_BYTES} …", "worker 7: next"]


def test_a_flood_is_counted_and_said_and_the_next_second_is_heard_again() -> None:
    async def story(pipe: int, output: ChildOutput, lines: list[str]) -> None:
        os.write(pipe, b"flood\n" * 1000)
        await until(lambda: any("dropped" in line for line in lines))
        os.write(pipe, b"later\n")
        await until(lambda: lines[-1] == "worker 7: later")
        os.close(pipe)
        output.close()

    lines = told(story)
    assert lines[:-2] == ["worker 7: flood"] * childlog.LINES_PER_S
    assert lines[-2] == f"worker 7: {1000 - childlog.LINES_PER_S} more lines in this second, dropped"


def test_who_writes_without_end_is_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that reading and dropping takes a bounded share of the supervisor's time."""
    monkeypatch.setattr(childlog, "BYTES_PER_S", 200_000)
    taken = 0

    async def story(pipe: int, output: ChildOutput, lines: list[str]) -> None:
        nonlocal taken
        os.set_blocking(pipe, False)
        end = asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < end:
            try:
                taken += os.write(pipe, b"z" * 4096)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
        os.close(pipe)
        output.close()

    told(story)
    assert taken < 200_000 + 3 * childlog.CHUNK_BYTES


def test_a_closed_output_says_what_was_left_and_closing_twice_is_fine() -> None:
    async def story(pipe: int, output: ChildOutput, lines: list[str]) -> None:
        os.write(pipe, b"last words\n" * 60)
        output.close()
        output.close()
        os.close(pipe)

    assert told(story)[-1] == "worker 7: 10 more lines in this second, dropped"


def test_a_full_log_goes_on_in_a_new_file_and_one_old_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(childlog, "LOG_BYTES", 100)
    path = tmp_path / "supervisor.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log = LogFile(path, descriptor)
    for number in range(60):
        log.write(f"line {number:04}")
    os.write(descriptor, b"the supervisor's own\n")
    os.close(descriptor)
    assert path.read_text().endswith("line 0059\nthe supervisor's own\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["supervisor.log", "supervisor.log.1"]
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) < 2 * 110 + 30


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    LogFile(tmp_path / "log", descriptor).write("line")
    os.close(descriptor)


def test_the_supervisors_own_words_are_lines_without_control_characters() -> None:
    lines: list[str] = []
    words = OwnWords(lines.append)
    print("one", "two", file=words)
    words.write("half ")
    words.write("a line\nand \x1b[31mred \udcff\n" + "x" * 5000 + "\n" + "y" * 9000)
    print(file=words)
    cut = childlog.LINE_BYTES
    assert lines == ["one two", "half a line", r"and \x1b[31mred \udcff", "x" * cut + " …", "y" * cut + " …"]


def test_a_flood_of_its_own_is_counted_and_said_later() -> None:
    lines: list[str] = []
    now_s = 100.0
    words = OwnWords(lines.append, lambda: now_s)
    for number in range(1000):
        print(number, file=words)
    now_s += 1
    print("later", file=words)
    assert lines[: childlog.OWN_LINES_PER_S] == [str(number) for number in range(childlog.OWN_LINES_PER_S)]
    dropped = 1000 - childlog.OWN_LINES_PER_S
    assert lines[childlog.OWN_LINES_PER_S :] == [
        f"{dropped} more lines of the supervisor in a second before this, dropped",
        "later",
    ]


def test_tracebacks_and_logging_go_through_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(sys, "stderr", OwnWords(lines.append))
    try:
        raise ValueError("caught")
    except ValueError:
        traceback.print_exc()
    logging.lastResort.handle(logging.makeLogRecord({"msg": "said by a loop", "levelno": logging.ERROR}))  # type: ignore[union-attr]
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == ["ValueError: caught", "said by a loop"]


def test_a_supervisor_that_talks_without_end_fills_no_disk(tmp_path: Path) -> None:
    """As its main program sets it up; with a clock that leaves every line through."""
    path = tmp_path / "supervisor.log"
    code = (
        "import itertools, sys; from pathlib import Path; from mitmsec.service import childlog\n"
        "childlog.LOG_BYTES = 10_000\n"
        "log = childlog.LogFile(Path(sys.argv[1]), 2)\n"
        "sys.stdout = sys.stderr = childlog.OwnWords(log.write, itertools.count().__next__)\n"
        "for number in range(5000): print('word', number)\n"
        "raise SystemExit('and the last')"
    )
    with path.open("ab") as log:
        done = subprocess.run([sys.executable, "-c", code, str(path)], stderr=log, check=False)
    assert done.returncode == 1
    assert path.read_text().endswith("word 4999\nand the last\n")
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) < 2 * 10_100
