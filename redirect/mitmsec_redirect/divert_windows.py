"""Windows, as `windivert` needs it: processes by their handles, the table of sockets, and the clock of events.

Nothing here has been run on Windows. The backend runs through it under Wine, against real processes and sockets and
handles that the test holds the other end of: tests/redirect/test_divert_windows.py.
"""

from __future__ import annotations

from contextlib import ExitStack

from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.filters import WINDIVERT
from mitmsec_redirect.windows_processes import HELD_LIMIT, NEW_LIMIT, WindowsProcesses
from mitmsec_redirect.windows_system import WindowsSystem
from mitmsec_redirect.windows_table import WindowsTable


class WindowsDivert:
    """`divert_system.DivertSystem`. Raises OSError elsewhere."""

    limits = WINDIVERT
    first_packets = ""
    has_cookies = False

    def __init__(self, system: WindowsSystem | None = None) -> None:
        self._system = system or WindowsSystem()
        self.ticks_per_s = self._system.ticks_per_s()

    def prepare(self, held: ExitStack) -> None:
        """The driver comes with the first handle."""

    def owners(self) -> Owners:
        """Those that live are met first; a thousand of them in a second."""
        processes = WindowsProcesses(self._system)
        for _ in range(HELD_LIMIT // NEW_LIMIT):
            if not processes.refresh():
                break
        return Owners(processes)

    def sockets(self) -> WindowsTable:
        return WindowsTable()

    def reap(self) -> int:
        return 0
