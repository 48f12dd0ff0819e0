"""Who listened before anybody looked: the listeners of a network namespace, and which process has each of them open.

    sock_diag ── LISTEN ──► where, cookie, inode ──┐
    /proc/PID/fd of those who are asked about ─────┴─► pid

Which of a listener's processes called listen(), nobody can tell any more; whoever has it open may accept from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterable
from itertools import islice

from mitmsec.core.model import Value
from mitmsec_redirect.records import V4_MAPPED
from mitmsec_redirect.sockdiag import INET_DIAG_SKV6ONLY, attribute_in
from mitmsec_redirect.socket_table import DiagTable, OpenSocket

LISTENING = 1 << 10  # of the states in include/net/tcp_states.h
ALL_OF_V6 = bytes(16)
DESCRIPTORS_LIMIT = 1024  # of one process, from the lowest on: it listens before it has many connections
_ID = struct.Struct(">H2x16s16x")  # struct inet_diag_sockid: port and address here, then the device's number
_DEVICE = struct.Struct("=I")
_NAME = re.compile(r"socket:\[(\d+)]")


class OpenListener(Value, frozen=True):
    """A TCP socket that listens."""

    cookie: int
    inode: int  # 0: no process has it any more
    local: bytes  # what it serves, as `steering_records` has it
    port: int
    also_v4: bool  # it listens on all addresses of IPv6, and on all of IPv4 too
    device: int  # the number of the only one that it listens on; 0: it listens on all
    cgroup: int  # the id of its maker's; 0: the kernel does not say

    @property
    def can_be_led(self) -> bool:
        """As with `served_steps`: not who listens on one device, but by a link-local address."""
        return not self.device or (self.local[0] == 0xFE and self.local[1] & 0xC0 == 0x80)


def open_listeners() -> list[OpenListener]:
    """Those of the calling thread's network namespace. Raises OSError."""
    with contextlib.closing(DiagTable()) as table:
        return [_listener(one) for one in table.open_sockets(LISTENING)]


def holders(pids: Iterable[int], most: int = DESCRIPTORS_LIMIT) -> dict[int, int]:
    """The inodes of the sockets that these processes have open, each with the first that has it.

    The first `most` descriptors of each are looked at: it takes microseconds each, and a process may have a million.
    """
    found: dict[int, int] = {}
    for pid in pids:
        for inode in sockets_of(pid, most)[0]:
            found.setdefault(inode, pid)
    return found


def sockets_of(pid: int, most: int = DESCRIPTORS_LIMIT) -> tuple[frozenset[int], int]:
    """The inodes of the sockets among the first `most` descriptors of the process, and how many were looked at."""
    inodes: set[int] = set()
    looked_at = 0
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:  # it may have ended
        for entry in islice(entries, most):
            looked_at += 1
            with contextlib.suppress(OSError):  # closed meanwhile
                if (name := _NAME.fullmatch(os.readlink(entry.path))) is not None:
                    inodes.add(int(name[1]))
    return frozenset(inodes), looked_at


def _listener(one: OpenSocket) -> OpenListener:
    port, address = _ID.unpack(one.raw_id[:36])
    local = V4_MAPPED + address[:4] if one.family == socket.AF_INET else address
    also_v4 = local == ALL_OF_V6 and attribute_in(one.message, INET_DIAG_SKV6ONLY, 1) == b"\0"
    (device,) = _DEVICE.unpack_from(one.raw_id, _ID.size)
    return OpenListener(one.cookie, one.inode, local, port, also_v4, device, one.cgroup)
