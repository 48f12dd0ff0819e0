"""The users that our processes run as: system users where an administrator made them, else a fixed range.

The range is documented in docs/processes.md so that an administrator can see at a glance whose process that is.
"""

from __future__ import annotations

import grp
import pwd

from mitmsec.core.messages import Role
from mitmsec.core.model import Value

FIRST_UID = 64980
_OFFSETS = {
    Role.GATE: 0,
    Role.SIGNER: 1,
    Role.WORKER: 2,
    Role.RECORDER: 3,
    Role.BROKER: 4,
    Role.SCANNER: 5,
    Role.CONSOLE: 6,
}
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
