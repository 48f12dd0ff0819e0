"""Executables are hashed beside the loop, whatever their size, and nobody waits for another one's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mitmsec_redirect import hashes
from mitmsec_redirect.hashes import ExecutableHashes, Remembered, identity_of


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
    found = ExecutableHashes().begin(opened(path)).result(timeout=20)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_small_file_does_not_wait_for_large_ones(
    file: Callable[[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse files of a terabyte cost a hostile program nothing."""
    monkeypatch.setattr(hashes, "DEADLINE_S", 2.0)
    table = ExecutableHashes()
    large = []
    for number in range(4):
        path = tmp_path / f"large-{number}"
        path.touch()
        os.truncate(path, 1 << 40)
        large.append(table.begin(opened(path)))
    small = table.begin(opened(file("small", b"small")))
    assert small.result(timeout=20) == hashlib.sha256(b"small").hexdigest()
    assert [one.result(timeout=60) for one in large] == [None] * 4  # given up, so that no thread goes on


def test_a_file_is_hashed_once_and_again_when_it_has_changed(file: Callable[[str, bytes], Path]) -> None:
    table, path = ExecutableHashes(), file("a", b"one")
    first = table.begin(opened(path))
    assert table.begin(opened(path)) is first
    assert table.known(identity_of(path.stat())) is first
    path.write_bytes(b"another")
    assert table.known(identity_of(path.stat())) is None
    assert table.begin(opened(path)).result(timeout=20) == hashlib.sha256(b"another").hexdigest()


def test_what_takes_too_long_is_given_up_and_not_begun_anew(
    file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "DEADLINE_S", 0.0)
    table, path = ExecutableHashes(), file("a", b"content")
    first = table.begin(opened(path))
    assert first.result(timeout=20) is None
    assert table.begin(opened(path)) is first


def test_more_files_than_the_limit_are_not_begun(
    file: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "WAITING_LIMIT", 1)
    monkeypatch.setattr(ExecutableHashes, "_start", lambda self: None)
    table = ExecutableHashes()
    first, second = (table.begin(opened(file(name, name.encode()))) for name in ("a", "b"))
    assert (first.done(), second.result(timeout=0)) == (False, None)


def test_what_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    assert ExecutableHashes().begin(os.open(tmp_path, os.O_RDONLY)).result(timeout=20) is None


def test_no_more_is_remembered_than_the_limit() -> None:
    table: Remembered[int, int] = Remembered(2)
    for number in (1, 2):
        table.keep(number, number)
    assert table.find(1) == 1
    table.keep(3, 3)
    assert list(table) == [1, 3]
