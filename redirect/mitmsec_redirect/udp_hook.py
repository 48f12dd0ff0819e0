"""UDP flows of what runs in a cgroup, as the kernel sees them begin and end. Nothing is changed or held up.

    cgroup ── links ── programs ──┬── flows     socket and remote → counts; the one heard of longest ago makes room
                                  ├── sockets   in each socket that has flows: which one it is connected to
                                  └── ring      what is new, until `drain` takes it; what does not fit is counted

Who holds a `UdpHook` is the supervisor (root), beside its connect hook; the links end with its descriptors. What the
programs do stands in `udp_programs`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from mitmsec.core.model import Direction, Quic, Value
from mitmsec_redirect import bpf, hook_programs, kernel_types, records, shortfall, udp_programs, udp_records
from mitmsec_redirect.bpf import Attach, Btf, Map, MapKind, RunCount
from mitmsec_redirect.connect_hook import ConnectHook, btf_int_array
from mitmsec_redirect.dns_lead import Lead
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.hook_programs import Attached
from mitmsec_redirect.lead_steps import DNS_PORT
from mitmsec_redirect.ringbuffer import RingBuffer
from mitmsec_redirect.shortfall import Shortfall
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.udp_programs import UdpLayout
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow, is_flow, key_of, parse_counts, parse_record

RING_BYTES = 1 << 20  # 6,000 flows between two looks
FLOWS_LIMIT = 16384


class Drained(Value, frozen=True):
    """What came since the last look, and of the flows that were too many how many there are, and the last of them."""

    told: list[UdpFlow | SocketReleased]
    beyond: int
    last: UdpFlow | None


class UdpHook:
    """The programs of one session, attached. Made by `open`; not thread-safe."""

    def __init__(self, maps: Mapping[str, Map], ring: RingBuffer, cgroup: int, layout: UdpLayout) -> None:
        self._maps, self._ring, self._cgroup, self._layout = maps, ring, cgroup, layout
        self._attached = Attached()
        self._held = ExitStack()
        self._lead: Lead | None = None
        self._beside: ConnectHook | None = None
        self.shortfall: Shortfall | None = None
        """As of the connect hook."""

    @classmethod
    def open(
        cls,
        cgroup_path: Path | str,
        *,
        quic: Quic,
        selection: Selection | None = None,
        paths: ExecutablePaths | None = None,
        lead: tuple[Lead, ConnectHook] | None = None,
        beside: ConnectHook | None = None,
        ring_bytes: int = RING_BYTES,
        flows_limit: int = FLOWS_LIMIT,
    ) -> UdpHook:
        """Attach to the cgroup: what its sockets do from now on is told. `selection`, `paths` as in `ConnectHook.open`.

        With `lead`, what its programs ask name servers goes to their relays, beside that connect hook, and
        a server that nobody has asked before is given one. QUIC that is refused, or that the hook `beside` leads to the
        gate, is not told. `ring_bytes` is a power of two, at
        least a page. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind.
        """
        with ExitStack() as held:
            maps = _maps(held, ring_bytes, flows_limit)
            ring = RingBuffer(maps["ring"].fd, ring_bytes)
            held.callback(ring.close)
            cgroup = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, cgroup)
            fds = {name: one.fd for name, one in maps.items()}
            noted = None if paths is None else paths.maps()
            offsets = kernel_types.process_offsets()
            leads = None if lead is None else lead[0].layout(lead[1])
            layout = UdpLayout(
                flows=fds["flows"], sockets=fds["sockets"], ring=fds["ring"], lost=fds["lost"],
                quic=quic, selection=selection, offsets=offsets, paths=noted, lead=leads,
            )  # fmt: skip
            hook = cls(maps, ring, cgroup, layout)
            hook._beside = beside
            hook._lead = None if lead is None else lead[0]
            held.callback(hook.detach)
            hook._put()
            hook._held = held.pop_all()
            return hook

    def _put(self) -> None:
        self._layout = replace(self._layout, quic_led=self._quic_led)
        unled = replace(self._layout, lead=None)
        nameless = replace(unled, paths=None)
        layouts = (self._layout, unled, nameless, replace(nameless, offsets=None))
        self._layout, programs, refused = hook_programs.load(layouts, udp_programs.build, "ms_udp_")
        self.shortfall = self.shortfall or shortfall.of(layouts[0], self._layout, refused)
        self._attached.exchange(programs, self._cgroup)

    @property
    def _quic_led(self) -> tuple[int, int] | None:
        if self._beside is None or not self._beside.leads_quic(self._layout.quic):
            return None
        return self._beside.map_fd("truth"), self._beside.map_fd("settings")

    def change(self, *, quic: Quic, everything: bool = False) -> None:
        """Other terms from now on, as in `ConnectHook.change`. Raises what `open` raises."""
        selection = self._layout.selection
        if selection is not None:
            selection = replace(selection, everything=everything)
        self._layout = replace(self._layout, quic=quic, selection=selection)
        self._put()

    # -- what it sees --------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._ring.fileno()

    def drain(self, most: int) -> Drained:
        """What is new since the last call, in order: every socket's end, and the first `most` flows."""
        told: list[UdpFlow | SocketReleased] = []
        beyond: list[bytes] = []
        for record in self._ring.drain():
            if not is_flow(record):
                told.append(parse_record(record))
            elif most > 0:
                told.append(flow := parse_record(record))
                self._meet(flow)
                most -= 1
            else:
                beyond.append(record)
                self.take(key_of(record))  # its next datagram begins it anew, when there may be room
        last = parse_record(beyond[-1]) if beyond else None
        return Drained(told, len(beyond), last if isinstance(last, UdpFlow) else None)

    def _meet(self, flow: UdpFlow | SocketReleased) -> None:
        """A name server that nobody has asked before is led from the next question on."""
        if self._lead is None or not isinstance(flow, UdpFlow) or flow.remote.port != DNS_PORT:
            return
        everything = self._layout.selection is None or self._layout.selection.everything
        if flow.direction is Direction.OUTBOUND and (flow.selected or everything):
            self._lead.meet(flow.remote.address)

    @property
    def leads(self) -> bool:
        """What is asked of name servers is led to their relays; this kernel accepted the programs for that."""
        return self._layout.lead is not None

    def counts(self, key: bytes) -> Counts | None:
        """What is counted of the flow so far; None: it has ended, or had to make room."""
        value = self._maps["flows"].lookup(key)
        return None if value is None else parse_counts(value)

    def take(self, key: bytes) -> Counts | None:
        """The same, and the flow is over: its next datagram begins another."""
        value = self._maps["flows"].take(key)
        return None if value is None else parse_counts(value)

    @property
    def lost(self) -> int:
        """How often a flow could not be told so far, because the ring was full."""
        value = self._maps["lost"].lookup(records.INDEX.pack(0))
        assert value is not None  # an array map has all its elements
        return int(records.COUNT.unpack(value)[0])

    @property
    def tells_callers(self) -> bool:
        """Flows say which process of their pid it was, and which program."""
        return self._layout.offsets is not None

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return self._attached.run_counts()

    # -- its end -------------------------------------------------------------------------------------------------------
    def detach(self) -> None:
        """See nothing more. Idempotent."""
        self._attached.detach()

    def close(self) -> None:
        """Detach, and let go of everything. Idempotent."""
        self._held.close()

    def __enter__(self) -> UdpHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _maps(held: ExitStack, ring_bytes: int, flows_limit: int) -> Mapping[str, Map]:
    btf = bpf.load_btf(btf_int_array(udp_records.KEY.size // 4))
    held.callback(os.close, btf)
    no_preallocation = bpf.MAP_FLAG_NO_PREALLOC
    made: dict[str, Map] = {}

    def make(
        name: str, kind: MapKind, key: int, value: int, entries: int, flags: int = 0, of: Btf | None = None
    ) -> None:
        made[name] = Map.create(kind, key, value, entries, f"ms_udp_{name}", flags=flags, btf=of)
        held.callback(made[name].close)

    make("flows", MapKind.LRU_HASH, udp_records.KEY.size, udp_records.COUNTS.size, flows_limit)
    make("sockets", MapKind.SK_STORAGE, 4, udp_records.KEY.size, 0, no_preallocation, Btf(btf, 1, 2))
    make("ring", MapKind.RINGBUF, 0, 0, ring_bytes)
    make("lost", MapKind.ARRAY, records.INDEX.size, records.COUNT.size, 1)
    return made
