"""Who sees connections come in for selected programs: eBPF programs on a cgroup, beside the connect hook's.

    cgroup ── links ── programs ──┬── sockets   a record in each socket, for as long as that is there
                                  ├── ring ───► drain(): began, accepted, ended
                                  └── lost      how many records found no room

It looks on, and changes nothing: without it, or when its ring is full, connections come in as ever. So it ends with
whoever holds it, unless connections are led to a gate (`steering`), which has to know who listens: then the program
that sees that is pinned with the rest. What the programs do stands in `inbound_programs`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from mitmsec_redirect import bpf, bpffs, hook_programs, inbound_programs, kernel_types, records, shortfall
from mitmsec_redirect import inbound_records as inbound
from mitmsec_redirect.bpf import Attach, EbpfUnavailable, Map, MapKind, RunCount
from mitmsec_redirect.connect_hook import socket_storage
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.hook_programs import Attached
from mitmsec_redirect.inbound_programs import InboundLayout
from mitmsec_redirect.inbound_records import Inbound, parse_inbound
from mitmsec_redirect.ringbuffer import RingBuffer
from mitmsec_redirect.shortfall import Shortfall
from mitmsec_redirect.steering_records import SteeringMaps
from mitmsec_redirect.steps import Selection

KEPT = {Attach.SOCK_OPS, Attach.SOCK_RELEASE}
RING_BYTES = 1 << 20  # over 5,000 records, three of which a connection has
_FIRST = records.INDEX.pack(0)


class InboundHook:
    """The programs of one session, attached. Made by `open`; not thread-safe."""

    def __init__(self, layout: InboundLayout, lost: Map, ring: RingBuffer, cgroup_fd: int) -> None:
        self._layout, self._lost, self._ring, self._cgroup = layout, lost, ring, cgroup_fd
        self._attached = Attached()
        self._held = ExitStack()
        self.shortfall: Shortfall | None = None
        """As of the connect hook."""
        self._told_lost = 0

    @classmethod
    def open(
        cls,
        cgroup_path: Path | str,
        *,
        selection: Selection | None = None,
        paths: ExecutablePaths | None = None,
        steering: SteeringMaps | None = None,
        pin_folder: Path | None = None,
        ring_bytes: int = RING_BYTES,
    ) -> InboundHook:
        """From now on connections to sockets of the cgroup are told, of the selected processes among them.

        `selection` and `paths` are the connect hook's. `pin_folder` exists, on a bpffs. `ring_bytes` is a power of two,
        at least a page. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind.
        """
        offsets = kernel_types.process_offsets()
        if offsets is None:
            raise EbpfUnavailable("this kernel does not tell its types", "Use one built with CONFIG_DEBUG_INFO_BTF.")
        with ExitStack() as held:
            cgroup = os.open(str(cgroup_path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, cgroup)
            sockets = socket_storage("ms_inbound", inbound.INBOUND.size, held, flags=bpf.MAP_FLAG_CLONE)
            ring_map = _made(held, MapKind.RINGBUF, 0, 0, ring_bytes, "ms_inbound_ring")
            lost = _made(held, MapKind.ARRAY, records.INDEX.size, records.COUNT.size, 1, "ms_inbound_lost")
            ring = RingBuffer(ring_map.fd, ring_bytes)
            held.callback(ring.close)
            noted = None if paths is None else paths.maps()
            layout = InboundLayout(sockets.fd, ring_map.fd, lost.fd, offsets, selection, steering, noted)
            hook = cls(layout, lost, ring, cgroup)
            held.callback(hook._attached.detach)
            hook._put()
            hook._pin(pin_folder)
            hook._held = held.pop_all()
            return hook

    def _put(self) -> None:
        """Who accepts first, so that nobody has accepted unseen what was seen to begin."""
        layouts = (self._layout, replace(self._layout, paths=None))
        self._layout, loaded, refused = hook_programs.load(layouts, inbound_programs.build, "mitmsec_in_")
        self.shortfall = self.shortfall or shortfall.of(layouts[0], self._layout, refused)
        self._attached.exchange(loaded, self._cgroup)

    def _pin(self, folder: Path | None) -> None:
        """What sees who listens, and who does no longer."""
        if folder is not None:
            for attach in KEPT & self._attached.links.keys():
                bpffs.pin(self._attached.links[attach], folder / f"link_{attach.name.lower()}")

    # -- while it runs -------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._ring.fileno()

    def drain(self, most: int | None = None) -> list[Inbound]:
        """What happened since the last call, in order; with `most`, the first of it."""
        return [parse_inbound(record) for record in self._ring.drain(most)]

    def lost(self) -> int:
        """How many records found no room since the last call."""
        value = self._lost.lookup(_FIRST)
        assert value is not None  # an array map has all its elements
        count: int = records.COUNT.unpack(value)[0]
        newly, self._told_lost = count - self._told_lost, count
        return newly

    def change(self, *, everything: bool, steering: SteeringMaps | None = None, pin_folder: Path | None = None) -> None:
        """Each program is exchanged in one step, where anything is another from now on.

        With `everything` whoever has no verdict is selected; `steering` and `pin_folder` as in `open`. Raises what
        `open` raises; then some programs are the new ones, and all of them work.
        """
        selection = self._layout.selection
        if selection is not None:
            selection = replace(selection, everything=everything)
        layout = replace(self._layout, selection=selection, steering=steering)
        if layout != self._layout:
            before, self._layout = self._layout, layout
            try:
                self._put()
            except BaseException:
                self._layout = before
                raise
        self._pin(pin_folder)

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return self._attached.run_counts()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._held.close()

    def __enter__(self) -> InboundHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _made(held: ExitStack, kind: MapKind, key: int, value: int, entries: int, name: str) -> Map:
    made = Map.create(kind, key, value, entries, name)
    held.callback(made.close)
    return made
