"""Whose a held SYN is: its socket, where the system tells that, and the process by the pid that somebody named."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from mitmsec.core.model import Caller, Confidence, Transport
from mitmsec_redirect.divert_held import flow_of
from mitmsec_redirect.divert_records import TRANSPORTS
from mitmsec_redirect.divert_seams import Call, SocketTold
from mitmsec_redirect.owner import Owner, settled, weaker
from mitmsec_redirect.packet import Ends
from mitmsec_redirect.sockdiag import CookieLookup

SOURCE = "windivert"
HASH_PAUSES = 20  # times as long, nobody waits again: a twentieth of the time at most


class Processes(Protocol):
    """Processes by pid: `processes.ProcessTable`, `windows_processes.WindowsProcesses`."""

    def refresh(self) -> object: ...
    def whose(
        self, pid: int, uid: int, comm: str, connected_ns: int | None = None, caller: Caller | None = None
    ) -> Owner: ...
    def close(self) -> None: ...


def same_uid(pid: int, uid: int) -> int:
    """Windows has none."""
    return uid


class Owners:
    """Made in the network namespace whose sockets `lookup` is to find. Not thread-safe.

    `uid_of` knows the user of a process better than that of its socket. `hash_wait_s`: how long a hash is waited for,
    by everybody.
    """

    def __init__(
        self,
        processes: Processes,
        lookup: CookieLookup | None = None,
        *,
        uid_of: Callable[[int, int], int] = same_uid,
        hash_wait_s: float = 0.0,
    ) -> None:
        self._processes, self._lookup, self._uid_of, self._hash_wait_s = processes, lookup, uid_of, hash_wait_s
        self._wait_again_s = 0.0
        self.calls: Callable[[int], Call | None] | None = None
        """Who connected a socket, by its cookie, where that is noted: then nobody else is told at KERNEL."""

    def socket_of(self, ends: Ends, interface: int) -> SocketTold:
        """Its cookie, if it is still there. `interface` counts for sockets that are bound to one.

        Where the system does not answer, its `fault`; the next one is asked for anew.
        """
        transport = TRANSPORTS[ends.protocol]
        if self._lookup is None:
            return SocketTold(transport)
        local, remote = (ends.source, ends.source_port), (ends.destination, ends.destination_port)
        try:
            found = self._lookup.find_packed(transport, local, remote, interface)
            call = None if found is None or self.calls is None else self.calls(found.cookie)
        except OSError as error:
            return SocketTold(transport, fault=str(error))
        if found is None:
            return SocketTold(transport)
        if call is not None and transport is Transport.UDP and call.remote != flow_of(ends).remote:
            call = None  # it was let go of, and whoever has it now may send to anybody
        return SocketTold(transport, found.cookie, found.uid, found.cgroup, call)

    def refresh(self) -> None:
        """See who has begun and ended, where the kernel does not tell it. To be called a few times a second."""
        self._processes.refresh()

    def owner(self, pid: int, uid: int, connected_ns: int | None, named: Confidence, call: Call | None = None) -> Owner:
        """The process as far as it can be read; else `uid` is its user. It is no surer than `named`, its pid, is.

        `connected_ns` None: that is not known, and it is taken for who has the pid now. With the `call` of that pid it
        is who called then, whatever has its pid, or runs in it, by now.
        """
        call = call if call is not None and call.pid == pid else None
        if call is None:
            read = self._processes.whose(pid, self._uid_of(pid, uid), "", connected_ns)
        else:
            read = self._processes.whose(pid, call.uid, call.comm, connected_ns, call.caller)
        if self.calls is not None and (call is None or call.caller is None):
            named = weaker(named, Confidence.INFERRED)
        owner = self._hashed(read)
        confidence = weaker(named, owner.process.confidence)
        process = msgspec.structs.replace(owner.process, source=SOURCE, confidence=confidence)
        return Owner(process, owner.sha256, owner.signature)

    def _hashed(self, owner: Owner) -> Owner:
        """With its hash if that comes at once: the process may end as soon as its connection goes on."""
        begun_s = time.monotonic()
        if self._hash_wait_s and owner.sha256 is not None and begun_s >= self._wait_again_s:
            concurrent.futures.wait([owner.sha256], self._hash_wait_s)
            self._wait_again_s = time.monotonic() + HASH_PAUSES * (time.monotonic() - begun_s)
        return settled(owner)

    def close(self) -> None:
        self._processes.close()
        if self._lookup is not None:
            self._lookup.close()
