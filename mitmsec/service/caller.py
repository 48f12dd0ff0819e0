"""Who called: the user that the command runs as, and files opened with that user's rights."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mitmsec.core.model import Value


class Caller(Value, frozen=True):
    """Who the command runs as."""

    uid: int
    gid: int
    name: str
    home: str


def who_calls(environ: Mapping[str, str], *, user: str | None) -> Caller:
    """Who the command runs as: `user`, else who called sudo, else who calls.

    Raises KeyError when `user` is unknown.
    """
    if user is not None:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        return _of(entry)
    uid = os.getuid()
    if uid == 0 and environ.get("SUDO_UID", "").isdigit():
        uid = int(environ["SUDO_UID"])
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        gid = int(environ["SUDO_GID"]) if environ.get("SUDO_GID", "").isdigit() else uid
        return Caller(uid=uid, gid=gid, name=str(uid), home="/")
    return _of(entry)


def _of(entry: pwd.struct_passwd) -> Caller:
    return Caller(uid=entry.pw_uid, gid=entry.pw_gid, name=entry.pw_name, home=entry.pw_dir)


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """Files opened in the body are opened with the caller's rights."""
    if os.geteuid() != 0 or caller.uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(caller.name, caller.gid) if not caller.name.isdigit() else [caller.gid])
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextmanager
def as_ourselves() -> Iterator[None]:
    """Within `acting_as`: what is opened in the body is ours, a module, say, which the caller cannot read."""
    uid = os.geteuid()
    if uid == os.getuid():
        yield
        return
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(uid)


def open_result(path: str, caller: Caller) -> int:
    """The file `path`, made if there is none and left as it is otherwise, to be written with the caller's rights.

    It holds keys or arguments, so a new one is the caller's alone. In a folder that others may write to, one that
    somebody else laid there, or a link, is not taken. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # nobody waits for a reader of a FIFO
    with acting_as(caller):
        folder = os.stat(os.path.dirname(path) or ".")
        ours = (0, caller.uid)
        is_ours = folder.st_uid in ours and not folder.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
        descriptor = os.open(path, flags if is_ours else flags | os.O_NOFOLLOW, 0o600)
    os.set_blocking(descriptor, True)
    if is_ours or os.fstat(descriptor).st_uid in ours:
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, "somebody else's file, in a folder that others may write to", path)
