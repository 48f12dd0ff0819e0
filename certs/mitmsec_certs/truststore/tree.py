"""Files and folders as they were, to be put back byte for byte.

    look_and_read ──► Picture (what lies where, of whom, with which mode) + contents, each once, by its SHA-256
    restore: what is not in the picture goes, what differs is written anew, what is equal is not touched

A file is replaced, never written into: whoever has it open reads on in the old one, and a kill leaves the old one or
the new one.
Done with the effective rights of the process; nothing here follows a link in the last place of a path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from mitmsec.core.model import Value

FILE_LIMIT_BYTES = 256 << 20  # more than any store has
NEW = ".mitmsec-new"  # ending of a file that is being written


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class Node(Value, frozen=True, array_like=True):
    """One file, folder or link. `content`: the SHA-256 of a file, the target of a link."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    content: str = ""


type Change = tuple[str, Node | None, Node | None]  # path, before, after
type Picture = Mapping[str, Node]  # by path; what is not there is not in it


class NoSuchKind(OSError):
    """Something that is neither file, folder nor link: nobody can put that back."""


def look(paths: Iterable[str]) -> dict[str, Node]:
    """What lies at `paths`, and below them. Raises OSError."""
    return {path: _node(path) for path in _all(paths)}


def look_and_read(paths: Iterable[str]) -> tuple[dict[str, Node], dict[str, bytes]]:
    """As `look`, and the contents of all files by their SHA-256. Raises OSError."""
    picture, contents = {}, {}
    for path in _all(paths):
        node = _node(path)
        if node.kind is Kind.FILE:
            data = _content(path)
            node = Node(node.kind, node.mode, node.uid, node.gid, hashlib.sha256(data).hexdigest())
            contents[node.content] = data
        picture[path] = node
    return picture, contents


def changes(before: Picture, after: Picture) -> list[Change]:
    """What differs, by path."""
    pairs = ((path, before.get(path), after.get(path)) for path in sorted({*before, *after}))
    return [(path, was, now) for path, was, now in pairs if was != now]


def restore(paths: Iterable[str], picture: Picture, contents: Mapping[str, bytes]) -> None:
    """Make what lies at `paths`, and below them, what it was. Raises OSError."""
    paths = list(paths)
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + NEW)
    for path in sorted({*_all(paths)}, reverse=True):  # what lies in a folder before that
        if path not in picture:
            os.rmdir(path) if _node(path).kind is Kind.FOLDER else os.unlink(path)
    for path, node in sorted(picture.items()):
        if not os.path.lexists(path) or _node(path) != node:
            _make(path, node, contents)


def replace(path: str, data: bytes, mode: int) -> None:
    """The file `path` with `data`, on disk when this returns; its folder is made if there is none. Raises OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + NEW)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path + NEW, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask is
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + NEW, path)
    sync(folder)


def sync(folder: str | Path) -> None:
    """The names in `folder` are on disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- one at a time ----------------------------------------------------------------------------------------------------
def _all(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if os.path.lexists(path):
            yield path
        if os.path.isdir(path) and not os.path.islink(path):
            with os.scandir(path) as entries:
                yield from _all(sorted(entry.path for entry in entries))


def _node(path: str) -> Node:
    status = os.lstat(path)
    mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    if stat.S_ISLNK(status.st_mode):
        return Node(Kind.LINK, mode, uid, gid, os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return Node(Kind.FOLDER, mode, uid, gid)
    if not stat.S_ISREG(status.st_mode):
        raise NoSuchKind(f"{path}: neither a file, a folder nor a link")
    return Node(Kind.FILE, mode, uid, gid, hashlib.sha256(_content(path)).hexdigest())


def _content(path: str) -> bytes:
    """Its owner may have put something else there by now: nobody waits for a writer, or reads for ever."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NoSuchKind(f"{path}: not a file any more")
        data = file.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"more than {FILE_LIMIT_BYTES >> 20} MiB", path)
    return data


def _make(path: str, node: Node, contents: Mapping[str, bytes]) -> None:
    if os.path.lexists(path) and _node(path).kind is not node.kind:
        shutil.rmtree(path) if _node(path).kind is Kind.FOLDER else os.unlink(path)
    match node.kind:
        case Kind.FILE:
            replace(path, contents[node.content], node.mode)
        case Kind.FOLDER:
            os.makedirs(path, exist_ok=True)
            os.chmod(path, node.mode)
        case Kind.LINK:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.symlink(node.content, path)
    if os.geteuid() == 0:
        os.chown(path, node.uid, node.gid, follow_symlinks=False)
