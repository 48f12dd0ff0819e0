"""What the gate tells the kernel of its legs has the places that the programs read."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Endpoint
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.records import address_bytes, address_text, port_field

ENDPOINTS = st.builds(Endpoint.of, st.ip_addresses().map(str), st.integers(0, 0xFFFF))


@given(ENDPOINTS, ENDPOINTS)
def test_a_leg_is_told_as_its_listener_sees_it(remote: Endpoint, local: Endpoint) -> None:
    key = shared.leg_key(remote, local)
    assert len(key) == shared.LEG.size
    assert address_text(key[shared.LEG_REMOTE : shared.LEG_REMOTE + 16]) == remote.address
    assert address_text(key[shared.LEG_LOCAL : shared.LEG_LOCAL + 16]) == local.address
    ports = struct.unpack_from("=II", key, shared.LEG_REMOTE_PORT)
    assert (port_field(ports[0]), ports[1]) == (remote.port, local.port)


@given(ENDPOINTS)
def test_a_peer_is_told_with_its_port_in_network_order(peer: Endpoint) -> None:
    address, port, _ = shared.PEER.unpack(shared.peer_value(peer))
    assert (address_text(address), port.to_bytes(4, "little")[:2]) == (peer.address, peer.port.to_bytes(2, "big"))


@given(ENDPOINTS)
def test_what_is_served_is_told_in_the_places_of_its_key(local: Endpoint) -> None:
    key = shared.SERVED.pack(address_bytes(local.address), local.port)
    assert len(key) == shared.SERVED.size
    assert address_text(key[shared.SERVED_LOCAL : shared.SERVED_LOCAL + 16]) == local.address
    assert struct.unpack_from("=I", key, shared.SERVED_PORT) == (local.port,)
