"""Leads connections that come in for selected programs to the gate, before anybody else sees them.

    InboundHook ── listen(), close() ──► served, listeners ─┐
                                                            ├── program on the network namespace ──► gate's listener
    gate ── its own legs ──────────────► legs ──────────────┤
         ── its heartbeat ─────────────► (the connect hook's)

The programs stand in `steering_programs` and, as far as sockets are concerned, in `inbound_programs`. The link ends
with whoever holds it, so that connections then come in as ever (`open`); for `closed` it is pinned beside the connect
hook's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mitmsec.core.model import OnFailure
from mitmsec_redirect import bpf, netns, records, steering_programs
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.bpf import Attach, Map, MapKind
from mitmsec_redirect.inbound_records import INBOUND
from mitmsec_redirect.steering_programs import SteeringLayout
from mitmsec_redirect.steering_records import Steered, SteeringMaps

SERVED_LIMIT, LISTENERS_LIMIT, LEGS_LIMIT = 4096, 8192, 65536
_SOCKET = struct.Struct("=Q")
MAPS: Mapping[str, tuple[MapKind, int, int, int]] = {
    "served": (MapKind.HASH, shared.SERVED.size, shared.LISTENS.size, SERVED_LIMIT),
    "listeners": (MapKind.HASH, records.COOKIE.size, INBOUND.size, LISTENERS_LIMIT),
    "legs": (MapKind.HASH, shared.LEG.size, shared.PEER.size, LEGS_LIMIT),
    "gates": (MapKind.SOCKMAP, records.INDEX.size, _SOCKET.size, 2),
    "counts": (MapKind.ARRAY, records.INDEX.size, records.COUNT.size, len(Steered)),
}


class Steering:
    """The program of one session, attached. Made by `open`; not thread-safe."""

    def __init__(self, maps: Mapping[str, Map], namespace: int) -> None:
        self._maps, self._namespace = maps, namespace
        self._link = -1
        self._held = ExitStack()
        self._told = dict.fromkeys(Steered, 0)

    @classmethod
    def open(
        cls,
        listeners: Sequence[int],
        *,
        heartbeat_fd: int,
        on_failure: OnFailure,
        netns_fd: int,
        pin_folder: Path | None = None,
    ) -> Steering:
        """From now on connections in the network namespace to what listens are led to the gate.

        `listeners` are the gate's sockets there, IPv4 and then IPv6 if there is one. `pin_folder` exists, on a bpffs.
        Raises EbpfUnavailable, ProgramRejected, OSError, with nothing left behind.
        """
        with ExitStack() as held:
            maps: dict[str, Map] = {}
            for name, shape in MAPS.items():
                maps[name] = Map.create(*shape, f"ms_{name}")
                held.callback(maps[name].close)
            for index, fd in enumerate(listeners):
                maps["gates"].update(records.INDEX.pack(index), _SOCKET.pack(fd))
            layout = SteeringLayout(
                **{name: one.fd for name, one in maps.items() if name != "listeners"},
                heartbeat=heartbeat_fd,
                on_failure=on_failure,
            )
            program = bpf.load_program(steering_programs.build(layout), Attach.SK_LOOKUP, "mitmsec_lookup")
            held.callback(os.close, program)
            steering = cls(maps, netns.inside(netns_fd, netns.current_cookie))
            steering._link = bpf.attach_to_netns(program, netns_fd)
            held.callback(os.close, steering._link)
            if pin_folder is not None:
                bpf.pin(steering._link, str(pin_folder / "link_sk_lookup"))
            steering._held = held.pop_all()
            return steering

    @property
    def maps(self) -> SteeringMaps:
        """For `InboundHook.open`."""
        return SteeringMaps(self._maps["served"].fd, self._maps["listeners"].fd, self._maps["legs"].fd, self._namespace)

    @property
    def descriptors(self) -> tuple[int, int]:
        """For the gate's `Legs`."""
        return self._maps["legs"].fd, self._maps["listeners"].fd

    def missed(self) -> dict[Steered, int]:
        """How many first segments could not be led to a gate since the last call; those that are sent again count."""
        found = {}
        for code in Steered:
            value = self._maps["counts"].lookup(records.INDEX.pack(code))
            assert value is not None  # an array map has all its elements
            count: int = records.COUNT.unpack(value)[0]
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
            self._link = -1

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._link = -1
        self._held.close()
