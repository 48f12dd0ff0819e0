"""Files of exports: new ones are whole or not there; those that go on end with a line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.service.export_delivery import Undelivered
from mitmsec.service.export_file import BLOCK_BYTES, Appended, new_file


def test_a_new_file_is_ours_alone_and_never_in_place_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"
    with new_file(path, replaces=False) as file:
        file.write(b"a\n")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"a\n", 0o600)
    with pytest.raises(SystemExit) as ended, new_file(path, replaces=False):
        pass
    assert ended.value.code == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit), new_file(tmp_path / "no" / "out", replaces=False):
        pass
    assert "cannot be made: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_what_could_not_be_written_to_the_end_is_not_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out"
    with pytest.raises(type(error)) as raised, new_file(path, replaces=False):
        raise error
    assert not isinstance(raised.value, OSError) or raised.value.filename == str(path)
    path.write_text("before")
    with pytest.raises(type(error)), new_file(path, replaces=True):
        raise error
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]


def test_force_replaces_it_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    (tmp_path / ".out.new").write_text("of somebody who was killed")
    with new_file(path, replaces=True) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["out"]


@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line), max_size=5), st.binary(max_size=20))
def test_a_torn_line_is_cut_off_and_the_next_begins_there(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "out"
    whole = b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole + torn.replace(b"\n", b""))
    sink = Appended(path, b"header\n")
    sink.take([b"next\n"])
    sink.settle()
    sink.close()
    assert path.read_bytes() == (whole or b"header\n") + b"next\n"


def test_a_torn_line_that_is_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for whole in (b"", b"a\n"):
        path.write_bytes(whole + b"x" * (3 * BLOCK_BYTES + 7))
        sink = Appended(path, b"")
        sink.take([b"b\n"])
        sink.close()
        assert path.read_bytes() == whole + b"b\n"


def test_a_file_that_was_moved_away_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = Appended(path, b"header\n")
    sink.settle()  # nothing yet
    sink.take([b"1\n"])
    path.rename(tmp_path / "out.1")
    sink.take([b"2\n"])
    (tmp_path / "out.1").replace(path)
    sink.take([b"3\n"])
    sink.settle()
    sink.close()
    sink.close()
    assert path.read_bytes() == b"header\n1\n3\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_or_refuses_is_undelivered(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Undelivered, match="link: Too many levels"):
        Appended(tmp_path / "link", b"").take([b"x\n"])
    with pytest.raises(Undelivered, match="is no file"):
        Appended(Path("/dev/full"), b"").take([b"x\n"])
    with pytest.raises(Undelivered, match="No such file"):
        Appended(tmp_path / "no" / "out", b"").take([b"x\n"])


@pytest.mark.root
def test_what_somebody_else_laid_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").touch(0o666)
    os.chown(tmp_path / "out", 65534, 65534)
    with pytest.raises(Undelivered, match="is somebody else's"):
        Appended(tmp_path / "out", b"").take([b"x\n"])
    assert (tmp_path / "out").read_bytes() == b""


def test_after_a_failure_the_torn_line_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, calls = tmp_path / "out", os.write, list[int]()

    def full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 4:  # of `three` some is written
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:3])

    sink = Appended(path, b"")
    sink.take([b"1\n"])
    monkeypatch.setattr(os, "write", full)
    sink.take([b"two\n"])  # in two pieces
    with pytest.raises(Undelivered, match="No space left"):
        sink.take([b"three\n"])
    monkeypatch.undo()
    sink.take([b"again\n"])
    sink.close()
    assert path.read_bytes() == b"1\ntwo\nagain\n"


def test_a_disk_that_fails_at_the_end_is_undelivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    sink = Appended(tmp_path / "out", b"")
    sink.take([b"1\n"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(Undelivered, match="Input/output"):
            sink.settle()
    sink.take([b"1\n"])
    sink.settle()
    sink.close()
    assert (tmp_path / "out").read_bytes() == b"1\n1\n"
