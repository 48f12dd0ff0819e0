"""Linux, as `windivert` needs it: libebpfdivert's classifiers, cookies of sockets, and /proc."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

from mitmsec_redirect import clsact, divert_library
from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.filters import EBPFDIVERT
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.sockdiag import CookieLookup
from mitmsec_redirect.socket_table import DiagTable

HASH_WAIT_S = 0.02  # others' first packets wait as long
STATUS_BYTES = 4096  # the user stands among the first lines


class LinuxDivert:
    """`divert_system.DivertSystem`, for the network namespace of the thread that asks."""

    limits = EBPFDIVERT
    first_packets = " and !loopback"  # the library does not take what is longer than 65,535 bytes, which is usual there
    has_cookies = True
    ticks_per_s = 10**9

    def prepare(self, held: ExitStack) -> None:
        held.callback(clsact.tidy, held.enter_context(contextlib.closing(clsact.TrafficControl())))

    def owners(self) -> Owners:
        return Owners(ProcessTable(), CookieLookup(), uid_of=real_uid, hash_wait_s=HASH_WAIT_S)

    def sockets(self) -> DiagTable:
        return DiagTable()

    def reap(self) -> int:
        divert_library.reap()
        return clsact.sweep()


def real_uid(pid: int, otherwise: int) -> int:
    """Of the process: a socket may come from one of another user."""
    try:
        file = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return otherwise
    try:
        _, named, rest = os.read(file, STATUS_BYTES).partition(b"\nUid:\t")
    except OSError:
        return otherwise
    finally:
        os.close(file)
    return int(rest.split(maxsplit=1)[0]) if named else otherwise
