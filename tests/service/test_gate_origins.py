"""Ways of what came in, and which backends a gate serves."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from mitmsec.core.model import Endpoint
from mitmsec.gate.quic_ground import Led
from mitmsec.gate.signals import Origin
from mitmsec.service.gate_origins import LEGS_LIMIT, HookOrigins, LedWay, QuicOrigins, given
from mitmsec_redirect import records
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.legs import Leg
from mitmsec_redirect.records import ATTEMPT, COOKIE, PORT, REMOTE, address_bytes


@pytest.mark.parametrize(
    ("kind", "descriptors"),
    [(BackendKind.WINDIVERT, 1), (BackendKind.REPLAY, 0), (BackendKind.NFTABLES, 2), (BackendKind.CONNECT_HOOK, 1)],
)
def test_for_a_backend_that_no_gate_serves_or_other_descriptors_there_is_none(
    kind: BackendKind, descriptors: int
) -> None:
    with pytest.raises(ValueError):
        given(kind, [-1] * descriptors)


SO_COOKIE = 57


class Hooked:
    """Connections to a listener, and the map in which a hook would note them."""

    def __init__(self) -> None:
        self.map = Map.create(MapKind.LRU_HASH, records.COOKIE.size, records.ATTEMPT.size, 64, "ms_origins")
        self.origins = HookOrigins(self.map.fd)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.socks = [self.listener]

    def connect(self, **noted: int) -> Origin | None:
        """What is found of a new connection, of which the hook has noted this."""
        client = socket.create_connection(self.listener.getsockname())
        accepted, _ = self.listener.accept()
        self.socks += [client, accepted]
        if noted:
            cookie = client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            self.map.update(cookie, attempt(**noted))
        ends = Endpoint.of(*accepted.getpeername()), Endpoint.of(*accepted.getsockname())
        found = self.origins.find(accepted, *ends)
        assert self.origins.find(accepted, *ends) is None, "its place in the map is free"
        return found

    def close(self) -> None:
        self.map.close()
        for sock in self.socks:
            sock.close()


@pytest.mark.root
def test_who_has_reset_its_connection_by_now_is_no_stranger() -> None:
    with contextlib.closing(Hooked()) as hooked:
        client = socket.create_connection(hooked.listener.getsockname())
        accepted, peer = hooked.listener.accept()
        hooked.socks.append(accepted)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(OSError, match="not connected"):
            hooked.origins.find(accepted, Endpoint.of(*peer), Endpoint.of(*hooked.listener.getsockname()))


def attempt(*, pid: int, at_ns: int, start_ns: int = 5) -> bytes:
    value = bytearray(records.ATTEMPT.size)
    value[:18] = records.address_bytes("203.0.113.9") + struct.pack("!H", 443)
    struct.pack_into("=II16s", value, records.PID, pid, 1000, b"curl")
    struct.pack_into("=Q", value, records.TIME, at_ns)
    struct.pack_into("=Q", value, records.STARTED, start_ns)
    return bytes(value)


@pytest.mark.root
def test_each_connection_is_found_with_its_own_time_and_caller_and_a_strangers_is_not() -> None:
    hooked = Hooked()
    told = [
        {"pid": 7, "at_ns": 1},
        {"pid": 7, "at_ns": 2},
        {"pid": 8, "at_ns": 3},
        {"pid": 7, "at_ns": 4, "start_ns": 6},
    ]
    for noted in told:
        found = hooked.connect(**noted)
        assert found is not None
        assert found.remote == Endpoint(address="203.0.113.9", port=443)
        assert (found.pid, found.comm, found.connected_ns) == (noted["pid"], "curl", noted["at_ns"])
        assert found.caller is not None
        assert found.caller.start_ns == noted.get("start_ns", 5), "a pid that was used again is another process"
        assert hooked.connect() is None
    hooked.close()


class PlayedLeg(Leg):
    """To a listener of the test's."""

    def __init__(self, listener: socket.socket, whose: Inbound | None) -> None:
        self.called, self.listener, self.is_closed = Endpoint.of(*listener.getsockname()), whose, False
        self._address = listener.getsockname()

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address)

    def close(self) -> None:
        self.is_closed = True


HERE = Endpoint(address="198.51.100.1", port=443)
WHOSE = Inbound(InboundKind.LISTENS, 1, 1, HERE, HERE, 0, 0, 0, 0, 0, False, 80, 33, "nginx", None)


def test_a_way_has_further_legs_as_long_as_somebody_of_ours_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun: list[PlayedLeg] = []
        whose: Inbound | None = WHOSE

        def begin() -> Leg:
            begun.append(PlayedLeg(listener, whose))
            return begun[-1]

        way = LedWay(begin)
        assert (way.is_ours, way.origin.comm, len(begun)) == (True, "nginx", 1)
        for number in (1, 2, 3):
            way.connect().close()
            assert len(begun) == number
        whose = None
        with pytest.raises(ConnectionRefusedError):
            way.connect()
        way.close()
        assert all(leg.is_closed for leg in begun)


def test_the_oldest_leg_of_a_way_makes_room() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun: list[PlayedLeg] = []

        def begin() -> Leg:
            begun.append(PlayedLeg(listener, WHOSE))
            return begun[-1]

        way = LedWay(begin)
        for _ in range(LEGS_LIMIT + 1):
            way.connect().close()
        assert [leg.is_closed for leg in begun] == [True] + [False] * LEGS_LIMIT
        way.close()


def test_a_way_to_somebody_elses_listener_is_nobodys() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = LedWay(lambda: PlayedLeg(listener, None))
        assert (way.is_ours, way.origin.pid) == (False, 0)
        way.connect().close()


@pytest.mark.root
def test_whose_quic_is_led_is_found_by_its_socket_as_long_as_that_is_there() -> None:
    table = Map.create(MapKind.HASH, COOKIE.size, ATTEMPT.size, 16, "ms_test")
    found = QuicOrigins(os.dup(table.fd))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, contextlib.closing(table):
        client.bind(("127.0.0.1", 0))
        here, relay = Endpoint.of(*client.getsockname()), Endpoint.of("127.0.0.1", 9)
        cookie = client.getsockopt(socket.SOL_SOCKET, 57, 8)  # SO_COOKIE
        (number,) = COOKIE.unpack(cookie)
        assert found.find(here, relay) == Led(number, None)
        attempt = bytearray(ATTEMPT.size)
        attempt[REMOTE : REMOTE + 16], attempt[PORT : PORT + 2] = address_bytes("203.0.113.9"), (443).to_bytes(2)
        table.update(cookie, bytes(attempt))
        led = found.find(here, relay)
        assert led is not None
        assert led.origin is not None
        assert (led.cookie, led.origin.remote) == (number, Endpoint.of("203.0.113.9", 443))
        attempt[PORT : PORT + 2] = (53).to_bytes(2)
        table.update(cookie, bytes(attempt))
        assert found.find(here, relay) is None
        found.forget(here, relay, number)
        assert table.lookup(cookie) is not None, "its socket is there still"
        client.close()
        assert found.find(here, relay) is None
        found.forget(here, relay, number)
        assert table.lookup(cookie) is None
    found.close()
