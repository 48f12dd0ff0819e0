"""What the `windivert` backend finds different from system to system, behind one interface, and chosen in one place.

                     Linux (`divert_linux`)                       Windows (`divert_windows`)
    a SYN's socket   its cookie, user and cgroup, by sock_diag    nothing: the event has its addresses
    events           read when the SYN comes                      told when they come
    processes        /proc                                        handles, `windows_processes`
    table            sock_diag, /proc/PID/fd                      iphlpapi.dll
    a time           nanoseconds of CLOCK_MONOTONIC               ticks of QueryPerformanceCounter
    what is left     classifiers on interfaces                    nothing: the driver lets go of it

Neither module can be imported on the other system.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Protocol

from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.filters import Limits
from mitmsec_redirect.socket_table import SocketTable


class DivertSystem(Protocol):
    """A system on which handles can be had."""

    @property
    def limits(self) -> Limits:
        """Of its compiler of filters."""

    @property
    def first_packets(self) -> str:
        """What a filter of first packets has to say besides."""

    @property
    def has_cookies(self) -> bool:
        """Events name the socket by a cookie, and are in the queue before its SYN. Else they may come after it."""

    @property
    def ticks_per_s(self) -> int:
        """Of the times in events."""

    def prepare(self, held: ExitStack) -> None:
        """Before the first handle is opened. What has to be undone once all of them are closed goes to `held`."""

    def owners(self) -> Owners:
        """For the sockets of the calling thread's network namespace."""

    def sockets(self) -> SocketTable:
        """Likewise."""

    def reap(self) -> int:
        """Remove what processes that died have left. How many pieces were found."""


def this_system() -> DivertSystem:
    """Raises OSError where it cannot be asked."""
    match sys.platform:
        case "win32":
            from mitmsec_redirect.divert_windows import WindowsDivert

            return WindowsDivert()
        case _:
            from mitmsec_redirect.divert_linux import LinuxDivert

            return LinuxDivert()
