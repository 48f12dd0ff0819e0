"""The users that our processes run as: system users where an administrator made them, else a fixed range.

The range is documented in docs/processes.md so that an administrator can see at a glance whose process that is.
"""

from __future__ import annotations

import grp
import os
import pwd

from mitmsec.core.messages import Role
from mitmsec.core.model import Value

FIRST_UID = 64980
_OFFSETS = {Role.GATE: 0, Role.SIGNER: 1, Role.WORKER: 2, Role.RECORDER: 3}
READERS_GROUP = "mitmsec"


class Account(Value, frozen=True):
    """Numbers to run as. `name` is for people."""

    uid: int
    gid: int
    name: str


def account_of(role: Role) -> Account:
    """The account of `role`: the system user `mitmsec-<role>`, else a number of our range. Not for the supervisor."""
    try:
        entry = pwd.getpwnam(f"mitmsec-{role}")
    except KeyError:
        number = FIRST_UID + _OFFSETS[role]
        return Account(uid=number, gid=number, name=str(number))
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, name=entry.pw_name)


def readers_gid() -> int:
    """The group that may read what was recorded; root's where no group `mitmsec` exists."""
    try:
        return grp.getgrnam(READERS_GROUP).gr_gid
    except KeyError:
        return 0


def caller(environ: dict[str, str], *, user: str | None) -> tuple[int, int, str, str]:
    """(uid, gid, name, home) that the command runs as: `user`, else who called sudo, else who calls.

    Raises KeyError when `user` is unknown.
    """
    if user is not None:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        return entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
    uid = os.getuid()
    if uid == 0 and environ.get("SUDO_UID", "").isdigit():
        uid = int(environ["SUDO_UID"])
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        gid = int(environ["SUDO_GID"]) if environ.get("SUDO_GID", "").isdigit() else uid
        return uid, gid, str(uid), "/"
    return entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
