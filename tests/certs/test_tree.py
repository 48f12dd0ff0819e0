"""What lay somewhere is put back byte for byte, whatever was done there in the meantime."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec_certs.truststore import tree
from mitmsec_certs.truststore.tree import Kind, look, look_and_read, replace, restore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.pem").write_bytes(b"a")
    (folder / "inner/b.pem").write_bytes(b"b")
    (folder / "inner/b.pem").chmod(0o640)
    (folder / "hash.0").symlink_to("a.pem")
    (folder / "nowhere").symlink_to("/nowhere/at/all")
    return folder


DEEDS = {
    "nothing": lambda store: None,
    "another content": lambda store: (store / "a.pem").write_bytes(b"A"),
    "another mode": lambda store: (store / "inner/b.pem").chmod(0o600),
    "another file": lambda store: (store / "inner/c.pem").write_bytes(b"c"),
    "one file less": lambda store: (store / "inner/b.pem").unlink(),
    "one link less": lambda store: (store / "hash.0").unlink(),
    "a link more": lambda store: (store / "more.0").symlink_to("inner"),
    "a folder more": lambda store: (store / "x/y").mkdir(parents=True),
    "a folder less": lambda store: shutil.rmtree(store / "inner"),
    "a folder in place of a file": lambda store: ((store / "a.pem").unlink(), (store / "a.pem").mkdir()),
    "a file in place of a folder": lambda store: (shutil.rmtree(store / "inner"), (store / "inner").write_bytes(b"")),
    "a link in place of a file": lambda store: ((store / "a.pem").unlink(), (store / "a.pem").symlink_to("inner")),
    "another folder's mode": lambda store: (store / "inner").chmod(0o700),
    "half a file": lambda store: (store / f"a.pem{tree.NEW}").write_bytes(b"ha"),
    "everything gone": lambda store: shutil.rmtree(store),
}


@settings(max_examples=60)
@given(deeds=st.lists(st.sampled_from(sorted(DEEDS)), max_size=4))
def test_whatever_was_done_is_undone(deeds: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = store.__wrapped__(tmp_path_factory.mktemp("tree"))  # type: ignore[attr-defined]
    before, contents = look_and_read([str(folder)])
    for deed in deeds:
        try:
            DEEDS[deed](folder)
        except OSError:
            continue  # another deed has made this one impossible
    restore([str(folder)], before, contents)
    assert look([str(folder)]) == before


@pytest.mark.parametrize("deed", DEEDS)
def test_each_deed_is_undone(deed: str, store: Path) -> None:
    before, contents = look_and_read([str(store)])
    assert set(contents.values()) == {b"a", b"b"}
    DEEDS[deed](store)
    assert (look([str(store)]) == before) == (deed == "nothing")
    restore([str(store)], before, contents)
    assert look([str(store)]) == before


def test_what_was_not_there_is_not_there_again(tmp_path: Path) -> None:
    paths = [str(tmp_path / "folder"), str(tmp_path / "file")]
    before, contents = look_and_read(paths)
    assert before == {}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").write_bytes(b"x")
    (tmp_path / f"file{tree.NEW}").write_bytes(b"half of what was being put back when somebody was killed")
    restore(paths, before, contents)
    assert list(tmp_path.iterdir()) == []


def test_what_is_equal_is_not_touched(store: Path) -> None:
    before, contents = look_and_read([str(store)])
    inode = (store / "a.pem").stat().st_ino
    (store / "inner/b.pem").unlink()
    restore([str(store)], before, contents)
    assert (store / "a.pem").stat().st_ino == inode


def test_who_has_a_file_open_reads_on_in_the_old_one(store: Path) -> None:
    with (store / "a.pem").open("rb") as reader:
        replace(str(store / "a.pem"), b"new", 0o600)
        assert reader.read() == b"a"
    assert (store / "a.pem").read_bytes() == b"new"
    assert (store / "a.pem").stat().st_mode & 0o777 == 0o600


def test_a_file_is_written_where_half_of_one_was_left(store: Path) -> None:
    (store / f"a.pem{tree.NEW}").symlink_to("inner/b.pem")
    replace(str(store / "a.pem"), b"new", 0o644)
    assert (store / "inner/b.pem").read_bytes() == b"b", "no link is followed"
    assert not (store / f"a.pem{tree.NEW}").is_symlink()


def test_links_are_looked_at_and_not_through(store: Path) -> None:
    node = look([str(store / "hash.0")])[str(store / "hash.0")]
    assert (node.kind, node.content) == (Kind.LINK, "a.pem")


def test_what_nobody_could_put_back_is_refused(store: Path) -> None:
    os.mkfifo(store / "pipe")
    with pytest.raises(tree.NoSuchKind, match="pipe"):
        look_and_read([str(store)])


def test_a_file_that_becomes_a_pipe_is_not_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the folder may exchange it between two looks."""
    os.mkfifo(store / "pipe")
    with pytest.raises(tree.NoSuchKind):
        tree._content(str(store / "pipe"))
    (store / "link").symlink_to("a.pem")
    with pytest.raises(OSError):
        tree._content(str(store / "link"))


def test_a_file_without_end_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "FILE_LIMIT_BYTES", 10)
    (store / "huge.pem").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="more than"):
        look_and_read([str(store)])


def test_changes_are_told_by_path(store: Path) -> None:
    before = look([str(store)])
    (store / "a.pem").write_bytes(b"A")
    (store / "hash.0").unlink()
    (store / "new").mkdir()
    told = {
        path.removeprefix(f"{store}/"): (was is None, now is None)
        for path, was, now in tree.changes(before, look([str(store)]))
    }
    assert told == {"a.pem": (False, False), "hash.0": (False, True), "new": (True, False)}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_are_put_back(store: Path) -> None:
    os.chown(store / "a.pem", 12345, 54321)
    os.chown(store / "hash.0", 12345, 54321, follow_symlinks=False)
    before, contents = look_and_read([str(store)])
    shutil.rmtree(store)
    restore([str(store)], before, contents)
    assert look([str(store)]) == before
