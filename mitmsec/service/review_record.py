"""A `review` event that a command has recorded before it does something: by the supervisor, in the caller's name."""

from __future__ import annotations

import os

from mitmsec.channel import ChannelBroken
from mitmsec.service import control
from mitmsec.service.joining import join
from mitmsec.service.options import EXIT_PRIVILEGE, fail
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State
from mitmsec_redirect.owner import user_name

RECORDED_S = 60.0


def calling_user() -> str:
    """Who called, by name: root's `sudo` says for whom."""
    caller = os.environ.get("SUDO_UID", "")
    return user_name(int(caller) if caller.isdigit() else os.getuid())


def recorded(state: State, order: control.Review, undone: str) -> None:
    """It is on disk when this returns; else the command ends, and says `undone`: what has not been done."""
    try:
        channel = join(state, worker=False)
        try:
            received = channel.exchange(order, timeout_s=RECORDED_S)
        finally:
            channel.close()
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    except (OSError, TimeoutError, ChannelBroken) as error:
        fail(f"it cannot be recorded: {error}", undone, EXIT_PRIVILEGE)
    answer = received[0] if received is not None else None
    if isinstance(answer, control.Refused):
        fail(answer.error, answer.remedy, answer.status)
    if not isinstance(answer, control.ReviewRecorded):
        fail("it cannot be recorded: the supervisor has gone", f"{undone}; try again", EXIT_PRIVILEGE)
