"""Whose a held SYN is: its socket's cookie by the addresses, and the process by the pid that an event named."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import time
from dataclasses import dataclass

import msgspec

from mitmsec.core.model import Confidence, Process
from mitmsec_redirect.divert_records import TRANSPORTS
from mitmsec_redirect.owner import Owner, settled
from mitmsec_redirect.packet import Ends
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.sockdiag import CookieLookup

SOURCE = "windivert"
HASH_WAIT_S = 0.02  # others' first packets wait as long
STATUS_BYTES = 4096  # the user stands among the first lines
HASH_PAUSES = 20  # times as long, nobody waits again: a twentieth of the time at most


@dataclass(frozen=True, slots=True)
class SocketTold:
    """What the system says of the socket that sent a SYN; on Windows nothing."""

    cookie: int | None = None
    uid: int = 0
    cgroup: int = 0  # the id of its cgroup


class Owners:
    """Made in the network namespace whose sockets are asked for. Not thread-safe."""

    def __init__(self, processes: ProcessTable | None = None) -> None:
        self._processes = processes or ProcessTable()
        self._wait_again_s = 0.0
        self._lookup = None if sys.platform == "win32" else CookieLookup()

    def socket_of(self, ends: Ends, interface: int) -> SocketTold:
        """Its cookie, if it is still there. `interface` counts for sockets that are bound to one."""
        if self._lookup is None:
            return SocketTold()
        local, remote = (ends.source, ends.source_port), (ends.destination, ends.destination_port)
        found = self._lookup.find_packed(TRANSPORTS[ends.protocol], local, remote, interface)
        return SocketTold() if found is None else SocketTold(found.cookie, found.uid, found.cgroup)

    def process(self, pid: int, uid: int, connected_ns: int | None) -> Process:
        """The process as far as it can be read; else `uid` is its user. `connected_ns` None: a table named it."""
        owner = self._processes.whose(pid, _real_uid(pid, uid), "", connected_ns)
        process, confidence = self._hashed(owner), owner.process.confidence
        if connected_ns is None and confidence is Confidence.KERNEL:
            confidence = Confidence.TABLE
        return msgspec.structs.replace(process, source=SOURCE, confidence=confidence)

    def _hashed(self, owner: Owner) -> Process:
        """With its hash if that comes at once: the process may end as soon as its connection goes on."""
        begun_s = time.monotonic()
        if owner.sha256 is not None and begun_s >= self._wait_again_s:
            concurrent.futures.wait([owner.sha256], HASH_WAIT_S)
            self._wait_again_s = time.monotonic() + HASH_PAUSES * (time.monotonic() - begun_s)
        return settled(owner).process

    def close(self) -> None:
        self._processes.close()
        if self._lookup is not None:
            self._lookup.close()


def _real_uid(pid: int, otherwise: int) -> int:
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
