"""Who is not to be diverted does not pay for a diverter: their packets pass by the handles, unseen (Linux).

Two classifiers on every interface that the handles are on, `bystander_programs`. They end with whoever holds them, or
are found by `clsact.sweep` as what the library leaves: a dead one's are of no handle's use, and change nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

from mitmsec_redirect import bpf, bystander_programs, records
from mitmsec_redirect.clsact import EGRESS, PROGRAMS, Classifier, TrafficControl

BEFORE, AFTER = 20_000, 30_000  # priorities of classifiers; the handles' lie between, see `divert_library`
HANDLE = 1
DESCRIPTOR = struct.Struct("=I")


def _only(cgroup: Path) -> bpf.Map:
    """A map that holds it. Where it lies does not count: in a cgroup namespace nobody can tell how deep that is."""
    made = bpf.Map.create(bpf.MapKind.CGROUP_ARRAY, records.INDEX.size, DESCRIPTOR.size, 1, "ms_only")
    try:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made.update(records.INDEX.pack(0), DESCRIPTOR.pack(descriptor))
        finally:
            os.close(descriptor)
    except BaseException:
        made.close()
        raise
    return made


def _detach(control: TrafficControl, one: Classifier) -> None:
    with contextlib.suppress(OSError):  # the interface has gone
        control.detach(one)


class Bystanders:
    """For the network namespace and the interfaces that are there when it is made. Closing detaches it there."""

    def __init__(self, leave: bytes) -> None:
        """Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind."""
        with ExitStack() as held:
            self._control = held.enter_context(contextlib.closing(TrafficControl()))
            interfaces, loopback = self._control.clsact(), {socket.if_nametoindex("lo")}
            self._attach(held, bystander_programs.back(), b"back", AFTER, interfaces)
            self._attach(held, bystander_programs.leave_all(), b"leave_all", BEFORE, interfaces & loopback)
            self._attach(held, leave, b"leave", BEFORE, interfaces - loopback)
            self._held = held.pop_all()

    @classmethod
    def outside(cls, cgroup: Path, gate_port: int) -> Bystanders:
        """All but the sockets made in this cgroup and below. Raises as the class does."""
        with contextlib.closing(_only(cgroup)) as only:
            return cls(bystander_programs.leave(only.fd, gate_port))

    @classmethod
    def unnoted(cls, sockets_fd: int, gate_port: int) -> Bystanders:
        """All but the sockets in which something is noted (`connect_notes`), and UDP. Raises as the class does."""
        return cls(bystander_programs.leave_unnoted(sockets_fd, gate_port))

    def _attach(self, held: ExitStack, code: bytes, what: bytes, priority: int, interfaces: frozenset[int]) -> None:
        program = bpf.load_classifier(code, f"ms_{what.decode()}")
        held.callback(os.close, program)
        for interface in interfaces:
            one = self._control.attach(interface, EGRESS, HANDLE, priority, program, PROGRAMS + what)
            held.callback(_detach, self._control, one)

    def close(self) -> None:
        """Idempotent."""
        self._held.close()
