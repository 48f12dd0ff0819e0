"""Executables are hashed beside the loop, whatever their size, and nobody waits for another one's."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from caller_stage import mounted

from mitmsec_redirect import hashes
from mitmsec_redirect.hashes import (
    SIZE_LIMIT_BYTES,
    WAITING_LIMIT,
    ExecutableHashes,
    Remembered,
    can_be_remembered,
    identity_of,
)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def make(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return make


def test_a_file_of_many_pieces_has_the_hash_of_its_whole(
    file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "PIECE_BYTES", 1000)
    path = file("a", bytes(range(256)) * 100)
    found = ExecutableHashes().begin(opened(path), 0).result(timeout=20)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()


def sparse(path: Path, size_bytes: int) -> Path:
    """It costs nothing to make, and much to read."""
    path.touch()
    os.truncate(path, size_bytes)
    return path


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in a file system whose files change without a trace."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_a_small_file_does_not_wait_for_large_ones(
    file: Callable[[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "DEADLINE_S", 2.0)
    table = ExecutableHashes()
    large = [table.begin(opened(sparse(tmp_path / f"large-{n}", SIZE_LIMIT_BYTES)), 0) for n in range(4)]
    small = table.begin(opened(file("small", b"small")), 0)
    assert small.result(timeout=20) == hashlib.sha256(b"small").hexdigest()
    assert [one.result(timeout=60) for one in large] == [None] * 4  # given up, so that no thread goes on


def test_a_file_larger_than_any_program_is_not_begun(tmp_path: Path) -> None:
    path = sparse(tmp_path / "huge", SIZE_LIMIT_BYTES + 1)
    descriptor = opened(path)
    assert ExecutableHashes().begin(descriptor, 0).result(timeout=0) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_file_is_hashed_once_and_again_when_it_has_changed(file: Callable[[str, bytes], Path]) -> None:
    table, path = ExecutableHashes(), file("a", b"one")
    first = table.begin(opened(path), 0)
    assert table.begin(opened(path), 0) is first
    assert table.known(identity_of(path.stat())) is first
    path.write_bytes(b"another")
    assert table.known(identity_of(path.stat())) is None
    assert table.begin(opened(path), 0).result(timeout=20) == hashlib.sha256(b"another").hexdigest()


def test_what_takes_too_long_is_given_up_and_not_begun_anew(
    file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "DEADLINE_S", 0.0)
    table, path = ExecutableHashes(), file("a", b"content")
    first = table.begin(opened(path), 0)
    assert first.result(timeout=20) is None
    assert table.begin(opened(path), 0) is first


def test_a_user_with_a_full_share_loses_its_largest_file_and_nobody_elses(
    tmp_path: Path, file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "USER_LIMIT", 2)
    monkeypatch.setattr(ExecutableHashes, "_start", lambda self: None)
    table = ExecutableHashes()
    others = table.begin(opened(sparse(tmp_path / "others", 9000)), 1)
    large, middle = (table.begin(opened(sparse(tmp_path / str(size), size)), 0) for size in (8000, 10))
    small = table.begin(opened(file("small", b"s")), 0)
    assert [one.done() for one in (others, large, middle, small)] == [False, True, False, False]
    assert large.result() is None
    assert table.begin(opened(tmp_path / "8000"), 0).result(timeout=0) is None, "the largest is the new one itself"
    for _ in range(hashes.THREADS):
        threading.Thread(target=table._serve, daemon=True).start()
    assert small.result(timeout=20) == hashlib.sha256(b"s").hexdigest()
    assert others.result(timeout=20) == hashlib.sha256(bytes(9000)).hexdigest()
    assert table.begin(opened(tmp_path / "8000"), 0).result(timeout=20) == hashlib.sha256(bytes(8000)).hexdigest()


def test_no_number_of_large_files_keeps_a_small_one_from_being_hashed(
    tmp_path: Path, file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "DEADLINE_S", 5.0)
    monkeypatch.setattr(hashes, "PIECE_BYTES", 4096)
    table = ExecutableHashes()
    for number in range(WAITING_LIMIT + 8):
        table.begin(opened(sparse(tmp_path / str(number), SIZE_LIMIT_BYTES - number)), number // 8)
    assert len(table._under_way) == WAITING_LIMIT
    small = table.begin(opened(file("small", b"small")), 4711)
    assert small.result(timeout=60) == hashlib.sha256(b"small").hexdigest()


def test_a_file_is_given_up_while_a_thread_reads_it(
    tmp_path: Path, file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "USER_LIMIT", 1)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    reading = os.open(fifo, os.O_RDONLY)
    table = ExecutableHashes()
    held = table.begin(reading, 0)
    while table._waiting:
        time.sleep(0.01)
    next(iter(table._under_way)).left_bytes = 1  # as if there were much to come
    empty = table.begin(opened(file("empty", b"")), 0)
    assert held.result(timeout=0) is None
    assert empty.result(timeout=20) == hashlib.sha256(b"").hexdigest()
    os.write(writer, b"x")  # the thread comes back, and closes it
    while is_open(reading):
        time.sleep(0.01)
    os.close(writer)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


# --- files that change without a trace --------------------------------------------------------------------------------
def changed_through_a_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        assert pages[0] is not None  # the page is mapped for reading first, then written to
        pages[0:1] = b"X"


def test_a_file_in_memory_is_hashed_each_time_for_its_times_do_not_tell(in_memory: Path) -> None:
    path = in_memory / "program"
    path.write_bytes(b"one")
    table = ExecutableHashes()
    first = table.begin(opened(path), 0)
    assert first.result(timeout=20) == hashlib.sha256(b"one").hexdigest()
    identity = identity_of(path.stat())
    changed_through_a_mapping(path)
    assert identity_of(path.stat()) == identity
    assert table.known(identity) is None
    assert table.begin(opened(path), 0).result(timeout=20) == hashlib.sha256(b"Xne").hexdigest()


@pytest.mark.root
def test_a_file_of_a_container_is_remembered_if_only_root_may_write_to_it(tmp_path: Path, in_memory: Path) -> None:
    lower, merged = in_memory / "lower", tmp_path / "merged"
    for folder in (lower, merged):
        folder.mkdir()
    path = lower / "program"
    path.write_bytes(b"one")
    for mode, owner, is_remembered in ((0o755, 0, True), (0o775, 0, False), (0o757, 0, False), (0o755, 1000, False)):
        path.chmod(mode)
        os.chown(path, owner, owner)
        with mounted("overlay", merged, f"lowerdir={lower}:{tmp_path}"), (merged / "program").open("rb") as file:
            assert can_be_remembered(file.fileno()) is is_remembered


def test_what_is_not_a_file_system_that_we_know_is_not_remembered() -> None:
    with open("/proc/self/status", "rb") as file:
        assert not can_be_remembered(file.fileno())
    assert hashes._file_system(-1) == 0


def test_what_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    assert ExecutableHashes().begin(os.open(tmp_path, os.O_RDONLY), 0).result(timeout=20) is None


def test_no_more_is_remembered_than_the_limit() -> None:
    table: Remembered[int, int] = Remembered(2)
    for number in (1, 2):
        table.keep(number, number)
    assert table.find(1) == 1
    table.keep(3, 3)
    assert list(table) == [1, 3]
