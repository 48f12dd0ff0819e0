"""The gate's sign of life where it may not touch the kernel's tables itself: an eventfd, heard by the supervisor.

The supervisor's loop hears each beat and passes it on into the kernel. So both must be alive and not hang, or the beats
end and the network falls the way `on_failure` says.
"""

from __future__ import annotations

import contextlib
import os


class Pulse:
    """The eventfd by its inherited descriptor, on either side."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @staticmethod
    def new() -> int:
        """A descriptor for both sides; the caller's to close."""
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def beat(self) -> None:
        """Alive now (gate). Due several times a second. Beats that nobody hears add up, and never wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def heard(self) -> bool:
        """Whether the gate has beaten since the last call (supervisor)."""
        try:
            return os.eventfd_read(self._fd) > 0
        except BlockingIOError:
            return False
