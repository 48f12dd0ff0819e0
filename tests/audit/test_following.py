"""The index follows the log: at once, after any end, and only the log that it was made of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audit_events import connection, draft, forging, log_of, store_in

from mitmsec.audit import following as module
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.following import Following
from mitmsec.audit.index import FILE_NAME as INDEX
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME

KILLED = """
import sys, time
from pathlib import Path
from mitmsec.audit import following
following.FOLLOW_S, following.CHUNK = 0.001, 7
one = following.Following(Path(sys.argv[1]))
one.wake()
Path(sys.argv[2]).touch()
print(one._process, flush=True)
time.sleep(60)
"""


def sizes(folder: Path) -> tuple[int, int]:
    """What is indexed, and what is there."""
    with opened(folder) as log:
        return log.indexed_size, log.size()


def until_indexed(folder: Path, size: int) -> None:
    until_s = time.monotonic() + 30
    while sizes(folder)[0] < size:
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_what_is_appended_is_indexed_soon(tmp_path: Path) -> None:
    following, store = Following(tmp_path), store_in(tmp_path)
    for number in range(3):
        store.append([draft(connection(f"flow-{number}"))])
        following.wake()
        until_indexed(tmp_path, number + 1)
    store.append([draft(connection("flow-3"))])
    following.close()
    following.close()
    store.close()
    assert sizes(tmp_path) == (4, 4)


def test_an_index_that_is_behind_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(10)])
    Following(tmp_path).close()
    assert sizes(tmp_path) == (10, 10)


def test_what_takes_too_long_at_the_end_is_left_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "CLOSE_S", -1.0)
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(10)])
    monkeypatch.setattr(module, "_ended", lambda process: os.waitpid(process, 0))
    Following(tmp_path).close()
    assert sizes(tmp_path) == (4, 10)
    monkeypatch.undo()
    Following(tmp_path).close()
    assert sizes(tmp_path) == (10, 10)


def test_the_index_of_another_log_is_not_asked_and_thrown_away(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, name in ((one, "a"), (other, "b")):
        folder.mkdir()
        log_of(folder, [connection(f"{name}-{number}") for number in range(3)])
    Following(one).close()
    (one / INDEX).rename(other / INDEX)
    assert sizes(other) == (0, 3)
    with opened(other) as log:
        assert log.event("b-1") is not None
    Following(other).close()
    assert sizes(other) == (3, 3)
    with opened(other) as log:
        assert log.event("a-1") is None
        assert log.event("b-1") is not None


def test_the_index_of_a_log_that_was_cut_is_thrown_away(tmp_path: Path) -> None:
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(300)])
    Following(tmp_path).close()
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("DELETE FROM events WHERE seq >= 256")
        conn.execute("DELETE FROM tiles WHERE number = 1")
    assert sizes(tmp_path) == (0, 256)
    Following(tmp_path).close()
    assert sizes(tmp_path) == (256, 256)


def test_an_event_that_cannot_be_read_is_found_by_nothing(tmp_path: Path) -> None:
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(3)])
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("UPDATE events SET envelope = x'00' WHERE seq = 0")
        conn.execute("UPDATE events SET envelope = pack('[]') WHERE seq = 1")
    Following(tmp_path).close()
    assert sizes(tmp_path) == (3, 3)
    with opened(tmp_path) as log:
        assert [event["seq"] for event in log.events(Filter(kind=Kind.CONNECTION))] == [2]


def test_an_index_that_the_disk_does_not_take_is_said_once_and_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    log_of(tmp_path, [connection()])
    (tmp_path / INDEX).mkdir()
    following = Following(tmp_path)
    following.wake()
    time.sleep(0.3)
    (tmp_path / INDEX).rmdir()
    until_indexed(tmp_path, 1)
    following.close()
    assert capfd.readouterr().err.count("searches are slow") == 1


def test_an_index_with_a_spoilt_page_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(2000)])
    Following(tmp_path).close()
    content = bytearray((tmp_path / INDEX).read_bytes())
    for page in range(3, len(content) // 4096):
        content[page * 4096 : page * 4096 + 4096] = b"\x55" * 4096
    (tmp_path / INDEX).write_bytes(content)
    following = Following(tmp_path)
    store = store_in(tmp_path)
    store.append([draft(connection("one-more"))])
    following.wake()
    until_indexed(tmp_path, 2001)
    following.close()
    store.close()


def test_that_it_died_is_said_once(tmp_path: Path) -> None:
    following = Following(tmp_path)
    assert not following.died()
    os.kill(following._process, signal.SIGKILL)
    until_s = time.monotonic() + 10
    while not following.died():
        assert time.monotonic() < until_s
        time.sleep(0.01)
    assert not following.died()
    following.wake()
    following.close()


def test_long_texts_are_taken_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(5)])
    Following(tmp_path).close()
    assert sizes(tmp_path) == (5, 5)


def test_without_its_index_a_log_is_closed_all_the_same(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    (tmp_path / INDEX).mkdir()
    following = Following(tmp_path)
    process = following._process
    following.close()
    following.wake()
    assert not Path(f"/proc/{process}").exists()
    assert sizes(tmp_path) == (0, 1)


def test_where_the_system_does_not_fork_a_thread_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORKS", False)
    log_of(tmp_path, [connection()])
    Following(tmp_path).close()
    assert sizes(tmp_path) == (1, 1)


def test_one_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_follow", lambda folder, line: time.sleep(60))
    following = Following(tmp_path)
    monkeypatch.setattr(module, "CLOSE_S", -0.9)
    following.close()
    assert not Path(f"/proc/{following._process}").exists()


def test_it_is_its_recorders_and_nobody_elses(tmp_path: Path) -> None:
    """It has none of its files, yields to others, and ends with it, however that ends."""
    log_of(tmp_path, [connection()])
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, tmp_path / "begun"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    follower = int(process.stdout.readline())
    while os.getpriority(os.PRIO_PROCESS, follower) != module.NICE:
        time.sleep(0.01)
    assert {os.readlink(f"/proc/{follower}/fd/{number}")[:5] for number in os.listdir(f"/proc/{follower}/fd")} <= {
        "/dev/", "pipe:", str(tmp_path)[:5]
    }  # fmt: skip
    process.kill()
    process.wait()
    process.stdout.close()
    until_s = time.monotonic() + 10
    while Path(f"/proc/{follower}").exists() and "Z" not in Path(f"/proc/{follower}/stat").read_text():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_recorder_that_is_killed_leaves_an_index_that_goes_on(tmp_path: Path) -> None:
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(400)])
    for _ in range(4):
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, begun], stdout=subprocess.DEVNULL)
        while not begun.exists():
            time.sleep(0.005)
        time.sleep(0.03)
        process.kill()
        process.wait()
    Following(tmp_path).close()
    assert sizes(tmp_path) == (400, 400)
    with opened(tmp_path) as log:
        assert log.counted(Filter()).total == 400
        assert len(list(log.events(Filter(text="api.example.com")))) == 400
