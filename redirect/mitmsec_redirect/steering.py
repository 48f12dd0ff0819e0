"""Leads connections that come in for selected programs to the gate, before anybody else sees them.

    InboundHook ── listen(), close() ──► served, listeners ─┐
                                                            ├── program on the network namespace ──► gate's listener
    gate ── its own legs ──────────────► legs ──────────────┤
         ── its heartbeat ─────────────► (the connect hook's)

Under a standing selection somebody else keeps listeners that began before us (`keep`, `forget`), by the same rules as
the kernel does (`served_steps`).

The programs stand in `steering_programs` and, as far as sockets are concerned, in `inbound_programs`. The link ends
with whoever holds it, so that connections then come in as ever (`open`); for `closed` it is pinned beside the connect
hook's.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from mitmsec.core.model import OnFailure
from mitmsec_redirect import bpf, bpffs, netns, records, steering_programs
from mitmsec_redirect import inbound_records as inbound
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.bpf import Attach, Map, MapKind
from mitmsec_redirect.inbound_records import INBOUND, Inbound, parse_inbound
from mitmsec_redirect.steering_programs import SteeringLayout
from mitmsec_redirect.steering_records import Steered, SteeringMaps

SERVED_LIMIT, LISTENERS_LIMIT, LEGS_LIMIT = 65536, 8192, 65536
UNDECIDED_PART = 8  # of either room, the undecided have one in so many
_SOCKET = struct.Struct("=Q")
_TWO = struct.Struct("=QQ")
_ONE_LESS = (1 << 64) - 1
MAPS: Mapping[str, tuple[MapKind, int, int, int]] = {
    "served": (MapKind.HASH, shared.SERVED.size, shared.LISTENS.size, SERVED_LIMIT),  # only grows
    "listeners": (MapKind.HASH, records.COOKIE.size, INBOUND.size, LISTENERS_LIMIT),
    "undecided": (MapKind.HASH, records.COOKIE.size, shared.MARK.size, LISTENERS_LIMIT // UNDECIDED_PART),
    "undecided_at": (MapKind.HASH, shared.SERVED.size, shared.MARK.size, SERVED_LIMIT // UNDECIDED_PART),
    "legs": (MapKind.HASH, shared.LEG.size, shared.PEER.size, LEGS_LIMIT),
    "gates": (MapKind.SOCKMAP, records.INDEX.size, _SOCKET.size, 2),
    "counts": (MapKind.ARRAY, records.INDEX.size, records.COUNT.size, len(Steered)),
}


class Steering:
    """The program of one session, and its maps. Made by `open`; not thread-safe."""

    def __init__(self, maps: Mapping[str, Map], layout: SteeringLayout, netns_fd: int, counting: int) -> None:
        self._maps, self._layout, self._netns, self._counting = maps, layout, netns_fd, counting
        self._namespace = netns.inside(netns_fd, netns.current_cookie)
        self._link = -1
        self._held = ExitStack()
        self._told = dict.fromkeys(Steered, 0)
        self._no_room = Counter[Steered]()  # for what `keep` was to keep

    @classmethod
    def open(cls, listeners: Sequence[int], *, heartbeat_fd: int, on_failure: OnFailure, netns_fd: int) -> Steering:
        """For connections in the network namespace to what listens; led to the gate they are with `lead`.

        `listeners` are the gate's sockets there, IPv4 and then IPv6 if there is one. Raises EbpfUnavailable,
        ProgramRejected, OSError, with nothing left behind.
        """
        with ExitStack() as held:
            maps: dict[str, Map] = {}
            for name, shape in MAPS.items():
                flags = bpf.MAP_FLAG_NO_PREALLOC if name == "served" else 0
                maps[name] = Map.create(*shape, f"ms_{name}", flags=flags)
                held.callback(maps[name].close)
            for index, fd in enumerate(listeners):
                maps["gates"].update(records.INDEX.pack(index), _SOCKET.pack(fd))
            layout = SteeringLayout(
                **{name: maps[name].fd for name in ("served", "legs", "gates", "counts")},
                heartbeat=heartbeat_fd,
                on_failure=on_failure,
            )
            network = os.dup(netns_fd)
            held.callback(os.close, network)
            counting = bpf.load_runnable(steering_programs.counting(layout.served), "mitmsec_count")
            held.callback(os.close, counting)
            steering = cls(maps, layout, network, counting)
            held.callback(steering._let_go)
            steering._held = held.pop_all()
            return steering

    # -- what is led ---------------------------------------------------------------------------------------------------
    def lead(self, on_failure: OnFailure, pin_folder: Path | None = None) -> None:
        """Lead connections to the gate by these terms, from now on; `pin_folder` exists, on a bpffs.

        Terms are exchanged in one step. Raises EbpfUnavailable, ProgramRejected, OSError.
        """
        code = steering_programs.build(replace(self._layout, on_failure=on_failure))
        program = bpf.load_program(code, Attach.SK_LOOKUP, "mitmsec_lookup")
        try:
            if self._link < 0:
                self._link = bpf.attach_to_netns(program, self._netns)
            else:
                bpf.replace_program(self._link, program)
        finally:
            os.close(program)
        if pin_folder is not None:
            bpffs.pin(self._link, pin_folder / "link_sk_lookup")

    def keep(self, record: bytes) -> bool:
        """A listener by its record (`inbound_records.listener`). False: it is kept already, or there is no room.

        That there was no room, `missed` tells.
        """
        one = parse_inbound(record)
        cookie = records.COOKIE.pack(one.cookie)
        if self._maps["listeners"].lookup(cookie) is not None:
            return False
        try:
            self._make_room(record, cookie, is_decided=one.by_selected)
            if not self._maps["listeners"].insert(cookie, record):
                return False
        except OSError:
            self._maps["undecided"].delete(cookie)
            self._no_room[Steered.NO_ROOM if one.by_selected else Steered.NO_ROOM_UNDECIDED] += 1
            return False
        self._count(record, 1)
        return True

    def _make_room(self, record: bytes, cookie: bytes, *, is_decided: bool) -> None:
        """Raises OSError: there is none."""
        for key in inbound.served_keys(record):
            if not is_decided and self._maps["served"].lookup(key) is None:
                self._maps["undecided_at"].insert(key, shared.MARK.pack(0))
            self._maps["served"].insert(key, shared.LISTENS.pack(0))
        if not is_decided:
            self._maps["undecided"].insert(cookie, shared.MARK.pack(0))

    def decided(self, cookie: int) -> None:
        """Its program was undecided, and is selected: it takes nothing of the share of others any more."""
        if not self._maps["undecided"].delete(records.COOKIE.pack(cookie)):
            return
        record = self._maps["listeners"].lookup(records.COOKIE.pack(cookie))
        for key in inbound.served_keys(record) if record is not None else ():
            self._maps["undecided_at"].delete(key)

    def forget(self, cookie: int) -> bool:
        """Its connections are not led any more. False: it was not kept."""
        record = self._maps["listeners"].take(records.COOKIE.pack(cookie))
        if record is None:
            return False
        self._maps["undecided"].delete(records.COOKIE.pack(cookie))
        self._count(record, _ONE_LESS)
        return True

    def kept(self) -> list[Inbound]:
        """The listeners now."""
        found = (self._maps["listeners"].lookup(key) for key in list(self._maps["listeners"].keys()))
        return [parse_inbound(record) for record in found if record is not None]

    def _count(self, record: bytes, more: int) -> None:
        for key in inbound.served_keys(record):
            address, port = shared.SERVED.unpack(key)
            bpf.run(self._counting, *_TWO.unpack(address), port, more)

    # -- who works with it ---------------------------------------------------------------------------------------------
    @property
    def namespace(self) -> int:
        """The cookie of the network namespace."""
        return self._namespace

    @property
    def maps(self) -> SteeringMaps:
        """For `InboundHook.open`."""
        names = ("served", "listeners", "legs", "undecided", "undecided_at", "counts")
        return SteeringMaps(**{name: self._maps[name].fd for name in names}, namespace=self._namespace)

    @property
    def descriptors(self) -> tuple[int, int]:
        """For the gate's `Legs`."""
        return self._maps["legs"].fd, self._maps["listeners"].fd

    def missed(self) -> dict[Steered, int]:
        """What could not be led to a gate since the last call, first segments and listeners.

        Of segments those that are sent again count, of listeners those that are found again.
        """
        found = {}
        for code in Steered:
            value = self._maps["counts"].lookup(records.INDEX.pack(code))
            assert value is not None  # an array map has all its elements
            count: int = records.COUNT.unpack(value)[0] + self._no_room[code]
            found[code], self._told[code] = count - self._told[code], count
        return {code: count for code, count in found.items() if count}

    def forget_legs(self) -> None:
        """The gate has gone, and its legs with it."""
        legs = self._maps["legs"]
        for key in list(legs.keys()):
            legs.delete(key)

    def detach(self) -> None:
        """Lead nobody anywhere, at once; what the gate has, it keeps."""
        if self._link >= 0:
            bpf.detach(self._link)
            self._let_go()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._held.close()

    def _let_go(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
