"""What a command asks name servers, and their answers, on their way to its gate: only copies, and only of its cgroup.

    cgroup ── links ── egress, ingress ──► ring ═══ descriptor ═══► gate (`DnsRing`): its own user, no privilege

Who holds a `DnsHook` is the supervisor (root), which never reads the ring: it never touches a byte of traffic. The
links end with its descriptors. A gate that is started anew reads on where the one before stopped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from mitmsec_redirect import bpf, dns_programs
from mitmsec_redirect.bpf import Attach, Map, MapKind, RunCount
from mitmsec_redirect.dns_records import DnsPacket, parse_dns_packet
from mitmsec_redirect.ringbuffer import RingBuffer

RING_BYTES = 1 << 19  # 340 packets between two looks


class DnsHook:
    """The programs of one command, attached. Made by `open`; not thread-safe."""

    def __init__(self, ring: Map, held: ExitStack) -> None:
        self._ring, self._held = ring, held
        self._programs: dict[Attach, int] = {}

    @classmethod
    def open(cls, cgroup_path: Path | str) -> DnsHook:
        """Attach to the cgroup. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind."""
        with ExitStack() as held:
            ring = Map.create(MapKind.RINGBUF, 0, 0, RING_BYTES, "ms_dns")
            held.callback(ring.close)
            cgroup = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, cgroup)
            hook = cls(ring, held)
            for attach in (Attach.EGRESS, Attach.INGRESS):
                code = dns_programs.copies(ring.fd, sent=attach is Attach.EGRESS)
                program = bpf.load_program(code, attach, f"ms_dns_{attach.name.lower()}")
                held.callback(os.close, program)
                held.callback(os.close, bpf.attach_to_cgroup(program, cgroup, attach))
                hook._programs[attach] = program
            hook._held = held.pop_all()
            return hook

    @property
    def ring_fd(self) -> int:
        """For `DnsRing`; ours, so duplicate it by passing it on."""
        return self._ring.fd

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return {attach: bpf.run_count(fd) for attach, fd in self._programs.items()}

    def close(self) -> None:
        """Detach, and let go of everything. Idempotent."""
        self._held.close()


class DnsRing:
    """The gate's end. It owns the descriptor; not thread-safe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ring = RingBuffer(fd, RING_BYTES)

    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._fd

    def drain(self) -> list[DnsPacket]:
        """What was asked and answered since the last call, in order."""
        return [packet for record in self._ring.drain() if (packet := parse_dns_packet(record)) is not None]

    def close(self) -> None:
        self._ring.close()
        os.close(self._fd)
