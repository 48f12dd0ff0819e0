"""The redirect backend for Linux: eBPF programs on a cgroup send the connections of what runs in it to the gate.

    cgroup ── links ── programs ──┬── settings, namespaces, routes     what we tell them
    (a pin each, if on_failure    ├── heartbeat                        what the gate tells them
     is closed)                   ├── truth (in the sockets)           what getpeername and getsockname answer
                                  ├── origins                          what the gate reads: cookie → Origin
                                  └── missed, counts                   what we record

Who holds a `ConnectHook` is the supervisor (root). Open: the links end with its descriptors, so its death leaves the
network open at once. Closed: links and maps are pinned, so its death leaves programs whose heartbeat has stopped,
which deny; `reap` removes them. The ladder of decisions stands in `programs`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from mitmsec.core.model import Endpoint, OnFailure, Quic
from mitmsec_redirect import bpf, hook_programs, kernel_types, netns, programs, records, shortfall
from mitmsec_redirect.backend import Backend, BackendFault, BackendKind, GateGround, Watched
from mitmsec_redirect.bpf import Attach, Btf, EbpfUnavailable, Map, MapKind, RunCount
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.records import Code, Missed, NamespaceFlag, Reason
from mitmsec_redirect.ringbuffer import RingBuffer
from mitmsec_redirect.routes import RouteMirror
from mitmsec_redirect.shortfall import Shortfall
from mitmsec_redirect.steps import Selection

ORIGINS_LIMIT = 65536  # connections that the gate has not yet asked about
MISSED_RING_BYTES = 1 << 19  # 3,276 that nobody has taken yet
NAMESPACES_LIMIT = 64
ROUTES_LIMIT = 8192

MAPS: Mapping[str, tuple[MapKind, int, int, int, int]] = {
    "origins": (MapKind.LRU_HASH, records.COOKIE.size, records.ATTEMPT.size, ORIGINS_LIMIT, 0),
    "missed": (MapKind.RINGBUF, 0, 0, MISSED_RING_BYTES, 0),
    "counts": (MapKind.ARRAY, records.INDEX.size, records.COUNT.size, len(Code), 0),
    "namespaces": (MapKind.HASH, records.COOKIE.size, records.NAMESPACE_FLAGS.size, NAMESPACES_LIMIT, 0),
    "routes": (MapKind.LPM_TRIE, records.ROUTE_KEY.size, records.ROUTE.size, ROUTES_LIMIT, bpf.MAP_FLAG_NO_PREALLOC),
    "heartbeat": (MapKind.ARRAY, records.INDEX.size, records.HEARTBEAT.size, 1, 0),
    "settings": (MapKind.ARRAY, records.INDEX.size, records.SETTINGS.size, 1, 0),
}
_FIRST = records.INDEX.pack(0)


class ConnectHook(Backend):
    """The programs of one session, attached. Made by `open`; not thread-safe."""

    kind = BackendKind.CONNECT_HOOK

    def __init__(self, maps: Mapping[str, Map], held: ExitStack, selection: Selection | None) -> None:
        self._maps = maps
        self._missed = RingBuffer(maps["missed"].fd, MAPS["missed"][3])
        self._held = held  # descriptors, in the order in which they must go
        self._programs: dict[Attach, int] = {}
        self._links: dict[Attach, int] = {}
        self._cgroup = -1
        self._selection = selection
        self._has_quic_relay = False
        self._offsets = kernel_types.process_offsets()
        self._paths: PathMaps | None = None
        self.shortfall: Shortfall | None = None
        """What it does not tell of callers, since this kernel will not have it."""
        self._pins: Path | None = None
        self._mirror: RouteMirror | None = None
        self._drained: dict[Reason, int] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        cgroup_path: Path | str,
        *,
        port_v4: int,
        port_v6: int | None,
        netns_cookies: Iterable[int],
        on_failure: OnFailure,
        quic: Quic,
        pin_folder: Path | None = None,
        netns_fd: int | None = None,
        selection: Selection | None = None,
        paths: ExecutablePaths | None = None,
        has_quic_relay: bool = False,
    ) -> ConnectHook:
        """Attach to the cgroup. From now on its sockets' connections go to the gate's listeners.

        `netns_cookies` are the namespaces with listeners on these ports; the routes of `netns_fd` (None: our own) are
        mirrored. `pin_folder`, for on_failure closed, is a new folder on a bpffs. `selection` narrows all this to the
        processes that it names; its map stays the caller's. In `paths`, the caller's too, is noted where executables
        lie. With `has_quic_relay` the gate hears UDP at the same ports, and QUIC that may pass is led there. It has one
        second for its first heartbeat. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind.
        """
        with ExitStack() as held:
            maps = {name: _held(held, name, *shape) for name, shape in MAPS.items()}
            maps["truth"] = socket_storage("ms_truth", records.TRUTH.size, held)
            hook = cls(maps, held, selection)
            hook._has_quic_relay = has_quic_relay
            held.callback(hook._missed.close)
            hook._paths = None if paths is None else paths.maps()
            for cookie in netns_cookies:
                hook.allow_namespace(cookie)
            hook.set_port(port_v4, port_v6)
            hook._mirror_routes(netns_fd)
            if pin_folder is not None:
                hook._pin(pin_folder)
            hook._attach(str(cgroup_path), on_failure, quic)
            hook._held = held.pop_all()
            return hook

    def _mirror_routes(self, netns_fd: int | None) -> None:
        def make() -> RouteMirror:
            return RouteMirror(netns.current_cookie(), self._maps["namespaces"], self._maps["routes"])

        self._mirror = netns.inside(netns_fd, make)
        self._held.callback(self._mirror.close)
        self._mirror.refresh()

    def _attach(self, cgroup_path: str, on_failure: OnFailure, quic: Quic) -> None:
        self._cgroup = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held.callback(os.close, self._cgroup)
        self._held.callback(self._let_go)
        self._put(on_failure, quic)

    def _put(self, on_failure: OnFailure, quic: Quic) -> None:
        """Each attach point runs the program that these terms want, or none."""
        fds = {name: one.fd for name, one in self._maps.items()}
        layout = programs.Layout(
            **fds, on_failure=on_failure, quic=quic if self.leads_quic(quic) else quic.unled,
            leads_quic=self.leads_quic(quic), selection=self._selection, offsets=self._offsets, paths=self._paths,
        )  # fmt: skip
        nameless = replace(layout, paths=None)
        layouts = (layout, nameless, replace(nameless, offsets=None))
        accepted, loaded, refused = hook_programs.load(layouts, programs.build, "mitmsec_")
        self.shortfall = self.shortfall or shortfall.of(layout, accepted, refused)
        self._offsets, self._paths = accepted.offsets, accepted.paths
        wanted = set(loaded)
        try:
            # the names before the connections, so that no program ever sees the gate as its peer
            for attach in sorted(wanted, reverse=True):
                self._put_one(attach, loaded[attach])
                del loaded[attach]
        finally:
            for program in loaded.values():
                os.close(program)
        for attach in self._links.keys() - wanted:
            self._take_away(attach)

    def _put_one(self, attach: Attach, program: int) -> None:
        if attach in self._links:
            bpf.replace_program(self._links[attach], program)
            os.close(self._programs[attach])
        else:
            self._links[attach] = bpf.attach_to_cgroup(program, self._cgroup, attach)
            self._pin_link(attach)
        self._programs[attach] = program

    def _take_away(self, attach: Attach) -> None:
        if self._pins is not None:
            _link_pin(self._pins, attach).unlink()
        bpf.detach(self._links[attach])
        os.close(self._links.pop(attach))
        os.close(self._programs.pop(attach))

    def _let_go(self) -> None:
        for descriptors in (self._links, self._programs):
            for descriptor in descriptors.values():
                os.close(descriptor)
            descriptors.clear()

    def _pin(self, folder: Path) -> None:
        """Everything stays as it is whatever becomes of us. The folder is new: what is there already is not ours."""
        folder.mkdir(mode=0o700)
        self._pins = folder
        self._held.callback(reap, folder)
        for name, one in self._maps.items():
            bpf.pin(one.fd, str(folder / f"map_{name}"))
        for attach in self._links:
            self._pin_link(attach)

    def _pin_link(self, attach: Attach) -> None:
        if self._pins is not None:
            bpf.pin(self._links[attach], str(_link_pin(self._pins, attach)))

    # -- for the gate and the supervisor's loop ------------------------------------------------------------------------
    @property
    def ground(self) -> GateGround:
        """The maps of origins and of the heartbeat."""
        return GateGround(kind=self.kind, heartbeat_fd=self.heartbeat_fd, origins_fd=self.origins_fd)

    @property
    def watched(self) -> tuple[Watched, ...]:
        """The changes of routes."""
        return (Watched(self.routes_fd, self.refresh_routes),)

    @property
    def origins_fd(self) -> int:  # for `origins.OriginTable`
        """Ours, so duplicate it by passing it on."""
        return self._maps["origins"].fd

    @property
    def heartbeat_fd(self) -> int:
        """For `heartbeat.Heartbeat`."""
        return self._maps["heartbeat"].fd

    def leads_quic(self, quic: Quic) -> bool:
        """Whether QUIC is led to the gate, under a policy with this word on it."""
        return self._has_quic_relay and quic is not Quic.REFUSE

    def map_fd(self, name: str) -> int:
        """Of the map that has this name at the head of this module; ours."""
        return self._maps[name].fd

    @property
    def last_beat_ns(self) -> int:
        """CLOCK_MONOTONIC of the gate's last beat."""
        return Heartbeat(self.heartbeat_fd).last_ns

    # -- while it runs -------------------------------------------------------------------------------------------------
    def set_port(self, port_v4: int, port_v6: int | None) -> None:
        """Other listeners from now on: a gate was started anew, and has one second for its first heartbeat."""
        six = records.port_field(port_v6) if port_v6 else 0
        self._maps["settings"].update(_FIRST, records.SETTINGS.pack(records.port_field(port_v4), six))
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._maps["heartbeat"].update(_FIRST, records.HEARTBEAT.pack(now))

    def change(
        self, *, on_failure: OnFailure, quic: Quic, everything: bool = False, pin_folder: Path | None = None
    ) -> None:
        """Other terms from now on: each program is exchanged in one step, and no connection meets none.

        `everything` and `pin_folder` as in `open`; a hook that is no longer to stay closed loses its pins. Raises what
        `open` raises; then some programs are the new ones, and all of them work.
        """
        if self._selection is not None:
            self._selection = replace(self._selection, everything=everything)
        self._put(on_failure, quic)
        if pin_folder is None and self._pins is not None:
            reap(self._pins, detach=False)
            self._pins = None
        elif pin_folder is not None and self._pins is None:
            self._pin(pin_folder)

    def stall(self) -> None:
        """Follow `on_failure` from this moment, as if the gate had stopped long ago; its next heartbeat ends that."""
        self._maps["heartbeat"].update(_FIRST, records.HEARTBEAT.pack(1))

    def allow_namespace(self, cookie: int) -> None:
        """Divert in this network namespace too: a listener of the gate is there, on the same ports."""
        flags = records.NAMESPACE_FLAGS.pack(NamespaceFlag(0))
        self._maps["namespaces"].update(records.COOKIE.pack(cookie), flags)

    @property
    def routes_fd(self) -> int:
        """Readable when routes, addresses or links have changed: then call `refresh_routes`."""
        assert self._mirror is not None
        return self._mirror.fileno()

    def refresh_routes(self) -> None:
        """Bring the mirror of the routes up to date; milliseconds for tables of hundreds of routes."""
        assert self._mirror is not None
        self._mirror.refresh()

    @property
    def routes_partial(self) -> bool:
        """Destinations without a route may be diverted instead of failing in connect()."""
        assert self._mirror is not None
        return self._mirror.partial

    def owner(self, client: Endpoint, origin: Endpoint) -> None:
        """The origin says it: the kernel wrote it down at connect()."""

    def troubles(self) -> tuple[BackendFault, ...]:
        """None: programs stay as they were loaded, and only root can take them away."""
        return ()

    @property
    def missed_fd(self) -> int:
        """Readable when there is something for `missed` to tell."""
        return self._missed.fileno()

    def missed(self) -> list[Missed]:
        """What was not diverted since the last call, oldest first; at most as many as the ring holds."""
        found = [records.parse_missed(value) for value in self._missed.drain()]
        for one in found:
            self._drained[one.reason] = self._drained.get(one.reason, 0) + 1
        return found

    def lost(self) -> Mapping[Reason, int]:
        """How many of each reason have not been told by `missed`: not taken yet, or the ring was full."""
        counts = {Reason[code.name]: self._count(code) for code in Code if code is not Code.DIVERTED}
        return {
            reason: n - self._drained.get(reason, 0) for reason, n in counts.items() if n > self._drained.get(reason, 0)
        }

    @property
    def tells_callers(self) -> bool:
        """Origins and missed connections say which process of their pid it was, and which program."""
        return self._offsets is not None

    @property
    def diverted(self) -> int:  # connections sent to the gate so far
        return self._count(Code.DIVERTED)

    def _count(self, code: Code) -> int:
        value = self._maps["counts"].lookup(records.INDEX.pack(code))
        assert value is not None  # an array map has all its elements
        count: int = records.COUNT.unpack(value)[0]
        return count

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return {attach: bpf.run_count(fd) for attach, fd in self._programs.items()}

    # -- its end -------------------------------------------------------------------------------------------------------
    def detach(self) -> None:
        """Divert nothing more, at once. Diverted connections live on, and their names stay true no longer."""
        for attach in list(self._links):
            bpf.detach(self._links[attach])
            os.close(self._links.pop(attach))

    def close(self) -> None:
        """Let go of everything, pins included. Idempotent."""
        if not self._closed:
            self._closed = True
            self._held.close()

    def __enter__(self) -> ConnectHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reap(pin_folder: Path, *, detach: bool = True) -> int:
    """Remove what a hook has pinned under `pin_folder`, and the folder; how many pins.

    Its programs end, whoever holds them, unless `detach` is false.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for pin in sorted(pin_folder.iterdir(), key=lambda path: not path.name.startswith("link_")):
            if detach and pin.name.startswith("link_"):
                _detach_pinned(pin)
            pin.unlink()
            removed += 1
        pin_folder.rmdir()
    return removed


def _link_pin(folder: Path, attach: Attach) -> Path:
    return folder / f"link_{attach.name.lower()}"


def _detach_pinned(pin: Path) -> None:
    """Even if some process still holds it: a program that nobody feeds must not stay."""
    with contextlib.suppress(OSError, EbpfUnavailable):
        link = bpf.pinned(str(pin))
        try:
            bpf.detach(link)
        finally:
            os.close(link)


def _held(held: ExitStack, name: str, kind: MapKind, key: int, value: int, entries: int, flags: int) -> Map:
    created = Map.create(kind, key, value, entries, f"ms_{name}"[:15], flags=flags)
    held.callback(created.close)
    return created


def socket_storage(name: str, size_bytes: int, held: ExitStack, *, flags: int = 0) -> Map:
    """Storage in each socket, which lives exactly as long as the socket. The kernel wants its types as BTF."""
    btf = bpf.load_btf(btf_int_array(size_bytes // 4))
    held.callback(os.close, btf)
    flags |= bpf.MAP_FLAG_NO_PREALLOC
    created = Map.create(MapKind.SK_STORAGE, 4, size_bytes, 0, name, flags=flags, btf=Btf(btf, 1, 2))
    held.callback(created.close)
    return created


def btf_int_array(length: int) -> bytes:
    """BTF with two types: 1 is `int`, 2 is an array of `length` of them (Documentation/bpf/btf.rst)."""
    kind_int, kind_array, signed = 1, 3, 1
    names = b"\0int\0"
    types = struct.pack("=III", 1, kind_int << 24, 4) + struct.pack("=I", signed << 24 | 32)
    types += struct.pack("=III", 0, kind_array << 24, 0) + struct.pack("=III", 1, 1, length)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names
