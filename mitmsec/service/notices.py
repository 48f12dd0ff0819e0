"""The notice for whoever uses this machine, where everybody may read it: STATE/run/notice.json, of the policy that was
loaded last. Its words are mitmsec.core.notice's.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from mitmsec.core.notice import NO_NOTICE, Notice, notice
from mitmsec.core.policy import Policy
from mitmsec.service.state import State

FILE_NAME = "notice.json"
LIMIT_BYTES = 4 << 20


def put_up(state: State, policy: Policy) -> None:
    """In place of the one before. Where it cannot be written, that stays: no policy waits for it."""
    path, new = state.run / FILE_NAME, state.run / f"{FILE_NAME}.new"
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(msgspec.json.encode(notice(policy)))
        new.rename(path)


def hanging(state: State) -> Notice:
    """The one that hangs there; NO_NOTICE, where none can be read."""
    try:
        with open(state.run / FILE_NAME, "rb") as file:
            return msgspec.json.decode(file.read(LIMIT_BYTES), type=Notice)
    except (OSError, msgspec.MsgspecError):
        return NO_NOTICE
