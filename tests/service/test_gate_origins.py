"""Ways of what came in, and which backends a gate serves."""

from __future__ import annotations

import socket

import pytest

from mitmsec.core.model import Endpoint
from mitmsec.service.gate_origins import LEGS_LIMIT, LedWay, given
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.legs import Leg


@pytest.mark.parametrize(
    ("kind", "descriptors"),
    [(BackendKind.WINDIVERT, 1), (BackendKind.REPLAY, 0), (BackendKind.NFTABLES, 2), (BackendKind.CONNECT_HOOK, 1)],
)
def test_for_a_backend_that_no_gate_serves_or_other_descriptors_there_is_none(
    kind: BackendKind, descriptors: int
) -> None:
    with pytest.raises(ValueError):
        given(kind, [-1] * descriptors)


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
