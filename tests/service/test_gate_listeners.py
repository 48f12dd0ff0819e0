"""Where a gate can be reached."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from mitmsec.service.ground import listeners, listeners_everywhere


@pytest.mark.checklist("C7")
def test_a_gate_listens_on_loopback_only() -> None:
    found = listeners()
    try:
        assert {ipaddress.ip_address(sock.getsockname()[0]).is_loopback for sock in found} == {True}
        assert len({sock.getsockname()[1] for sock in found}) == 1
    finally:
        for sock in found:
            sock.close()


def test_where_packets_are_led_to_any_address_it_listens_on_all_and_strangers_are_reset() -> None:
    """As tests/gate/test_gate_loop.py shows."""
    found = listeners_everywhere()
    try:
        assert {ipaddress.ip_address(sock.getsockname()[0]).is_unspecified for sock in found} == {True}
        assert all(sock.type == socket.SOCK_STREAM for sock in found)
    finally:
        for sock in found:
            sock.close()
