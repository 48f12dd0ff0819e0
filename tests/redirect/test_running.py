"""Which programs run, by looking: real processes that begin, execute something else, and end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mitmsec_redirect.running import RunningPrograms


def test_who_begins_and_who_ends_is_seen_at_the_next_look() -> None:
    running = RunningPrograms()
    assert os.getpid() in running.look().begun
    process = subprocess.Popen(["sleep", "60"])
    try:
        begun = running.look().begun
        assert begun[process.pid].uid == os.getuid()
        assert begun[process.pid].identity[:2] == (
            os.stat(os.path.realpath("/usr/bin/sleep")).st_dev,
            os.stat(os.path.realpath("/usr/bin/sleep")).st_ino,
        )
        assert os.getpid() not in begun
        assert process.pid not in running.look().begun
    finally:
        process.kill()
        process.wait()
    assert process.pid in running.look().ended


def test_another_program_of_the_same_process_is_a_beginning() -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(["sh", "-c", "read line; exec sleep 60"], stdin=reading)
    running = RunningPrograms()
    try:
        before = running.look().begun[process.pid].identity
        os.write(writing, b"go\n")
        while process.pid not in (begun := running.look().begun):
            pass
        assert begun[process.pid].identity != before
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


def test_what_is_no_process_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "12").mkdir()  # a kernel thread: there is no exe
    assert RunningPrograms(tmp_path).look().begun == {}
