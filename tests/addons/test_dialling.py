"""Addresses of inspectors' servers, and connections to them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mitmsec_addons.dialling import dial, endpoint


def reaches(listener: socket.socket, address: str) -> None:
    async def story() -> None:
        listener.listen()
        with await dial(address) as made:
            assert made.getpeername() == listener.getsockname()
            assert made.getblocking() is False

    asyncio.run(story())


def test_an_address_with_a_port_and_a_path_are_dialled(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        reaches(listener, f"127.0.0.1:{listener.getsockname()[1]}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        reaches(listener, str(tmp_path / "socket"))


def test_nobody_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(dial(str(tmp_path / "nobody")))


@pytest.mark.parametrize(
    "address", ["clamd.ctl", "localhost:3310", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=address):
        endpoint(address)


def test_both_families_are_taken() -> None:
    assert endpoint("127.0.0.1:3310") == (socket.AF_INET, ("127.0.0.1", 3310))
    assert endpoint("[::1]:3310") == (socket.AF_INET6, ("::1", 3310))
