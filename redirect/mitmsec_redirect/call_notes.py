"""Who called connect(), noted by the kernel at that moment, and read when the SYN is held (Linux, under a run).

    connect() ──► note by the socket's cookie: pid, user, thread, time, and which process and program (`Caller`)
        └──► SYN ──► held ──► cookie ──► `call_of`

A program that does not wait for its connection may have executed another before its SYN is looked at, or have ended:
the note says who it was. Notes end with whoever holds them.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from mitmsec.core.model import Endpoint
from mitmsec_redirect import call_programs, hook_programs, kernel_types, records
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.call_programs import CallLayout
from mitmsec_redirect.divert_seams import Call
from mitmsec_redirect.hook_programs import Attached

CALLS_LIMIT = 16384  # whose SYN is still to come; of those long begun nobody asks


class CallNotes:
    """For the sockets that connect in one cgroup and below. Made by `open`; `call_of` is for one thread at a time."""

    def __init__(self, calls: Map, held: ExitStack) -> None:
        self._calls, self._held = calls, held

    @classmethod
    def open(cls, cgroup_path: Path | str) -> CallNotes:
        """From now on. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind."""
        with ExitStack() as held:
            sizes = records.COOKIE.size, records.ATTEMPT.size
            calls = Map.create(MapKind.LRU_HASH, *sizes, CALLS_LIMIT, "ms_calls")
            held.callback(calls.close)
            cgroup = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, cgroup)
            layouts = CallLayout(calls.fd, kernel_types.process_offsets()), CallLayout(calls.fd, None)
            _, programs, _ = hook_programs.load(layouts, call_programs.build, "ms_call_")
            attached = Attached()
            held.callback(attached.detach)
            attached.exchange(programs, cgroup)
            return cls(calls, held.pop_all())

    def call_of(self, cookie: int) -> Call | None:
        """Who connected the socket. None: it is not noted, or that was long ago."""
        value = self._calls.lookup(records.COOKIE.pack(cookie))
        if value is None:
            return None
        address, port, _, _, pid, uid, comm, _, _, _, _, time_ns, _, *who = records.ATTEMPT.unpack(value)
        remote = Endpoint(address=records.address_text(address), port=records.port_field(port))
        return Call(pid, uid, records.comm_text(comm), time_ns, remote, records.caller_of(*who))

    def close(self) -> None:
        """Note nothing any more, and let go of everything. Idempotent."""
        self._held.close()
