"""Whose connections a standing selection means, noted by the kernel in connect() and read when the SYN is held (Linux).

    connect() ── selected? ──► note in the socket ──► its packets come to the handles; all others' pass (`bystanders`)
                          └──► note by its cookie ──► `verdict_of` the SYN, though its process may have ended by then

What was connected before the notes began is nobody's to divert, nor is what connects in another network namespace than
ours. Notes end with whoever holds them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from msgspec.structs import replace

from mitmsec.core.model import OnFailure
from mitmsec_redirect import hook_programs, netns, noting_programs, records
from mitmsec_redirect.bpf import Attach, Map, MapKind, RunCount
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.connect_hook import socket_storage
from mitmsec_redirect.hook_programs import Attached
from mitmsec_redirect.noting_programs import FAILURES, NoteLayout
from mitmsec_redirect.records import Code, Reason
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import Verdict, verdict_of

COOKIES_KIND, COOKIES_LIMIT = MapKind.LRU_HASH, 65536  # whose SYN is still to come; of those long begun nobody asks


class ConnectNotes:
    """For all cgroups of the machine. Made by `open`; `verdict_of` is for one thread at a time."""

    def __init__(self, layout: NoteLayout, cookies: Map, counts: Map, cgroup: int) -> None:
        self._layout, self._cookies, self._counts, self._cgroup = layout, cookies, counts, cgroup
        self._attached = Attached()
        self._held = ExitStack()

    @classmethod
    def open(cls, selection: Selection, on_failure: OnFailure) -> ConnectNotes:
        """From now on, in the calling thread's network namespace. The selection's maps stay the caller's.

        Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind.
        """
        with ExitStack() as held:
            sockets = socket_storage("ms_noted", records.INDEX.size, held)
            sizes = records.COOKIE.size, records.INDEX.size
            cookies = _made(held, COOKIES_KIND, *sizes, COOKIES_LIMIT, "ms_note_cookie")
            namespaces = _made(held, MapKind.HASH, *sizes, 1, "ms_note_netns")
            namespaces.update(records.COOKIE.pack(netns.current_cookie()), records.INDEX.pack(0))
            counts = _made(held, MapKind.ARRAY, records.INDEX.size, records.COUNT.size, len(Code), "ms_unnoted")
            cgroup = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, cgroup)
            layout = NoteLayout(sockets.fd, cookies.fd, namespaces.fd, counts.fd, on_failure, selection)
            made = cls(layout, cookies, counts, cgroup)
            held.callback(made._attached.detach)
            made._put()
            made._held = held.pop_all()
            return made

    def _put(self) -> None:
        self._layout, programs, _ = hook_programs.load((self._layout,), noting_programs.build, "ms_note_")
        self._attached.exchange(programs, self._cgroup)

    @property
    def sockets_fd(self) -> int:
        """The notes in sockets, for a classifier."""
        return self._layout.sockets

    def verdict_of(self, cookie: int) -> Verdict | None:
        """Of who connected the socket, as it was then. None: nothing is noted of it."""
        value = self._cookies.lookup(records.COOKIE.pack(cookie))
        return None if value is None else verdict_of(records.INDEX.unpack(value)[0])

    @property
    def unnoted(self) -> Mapping[Reason, int]:
        """How many connections of selected programs could not be noted so far; they went as `on_failure` says."""
        return {Reason[code.name]: count for code in FAILURES if (count := self._count(code))}

    def _count(self, code: Code) -> int:
        value = self._counts.lookup(records.INDEX.pack(code))
        assert value is not None  # an array map has all its elements
        return int(records.COUNT.unpack(value)[0])

    def change(self, on_failure: OnFailure, *, everything: bool) -> None:
        """Other terms from now on; no connection meets none. Raises what `open` raises."""
        selection = replace(self._layout.selection, everything=everything)
        self._layout = replace(self._layout, on_failure=on_failure, selection=selection)
        self._put()

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return self._attached.run_counts()

    def close(self) -> None:
        """Note nothing any more, and let go of everything. Idempotent."""
        self._held.close()


def _made(held: ExitStack, kind: MapKind, key_bytes: int, value_bytes: int, entries: int, name: str) -> Map:
    created = Map.create(kind, key_bytes, value_bytes, entries, name)
    held.callback(created.close)
    return created
