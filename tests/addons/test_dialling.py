"""Addresses of inspectors' servers, and connections to them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mitmsec_addons.dialling import INSTREAM, dial, dial_clamd, endpoint, socket_path


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


def test_to_a_clamd_it_is_said_that_a_stream_follows(tmp_path: Path) -> None:
    async def story() -> None:
        with await dial_clamd(str(tmp_path / "socket")) as made, listener.accept()[0] as peer:
            made.close()
            assert peer.recv(99) == INSTREAM

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        asyncio.run(story())


@pytest.mark.parametrize("path", ["/run/clamd.ctl", "/tmp/clamd.sock", "/var/run/clamd.ctl", "/clamd.ctl", "/etc/x"])
def test_a_socket_among_the_things_of_others_is_refused_and_what_to_do_is_said(path: str) -> None:
    """The broker would be shown all of them."""
    with pytest.raises(ValueError, match=r"in a folder of its own, such as /run/clamav/clamd\.ctl"):
        socket_path(path)


@pytest.mark.parametrize("path", ["/run/clamav/../clamd.ctl", "//run/clamd.ctl", "/run//clamd.ctl", "/run/./clamd.ctl"])
def test_nor_is_it_found_by_another_way(path: str) -> None:
    with pytest.raises(ValueError, match=r"without //, \. and \.\."):
        socket_path(path)


def test_a_socket_in_a_folder_of_its_own_is_taken(tmp_path: Path) -> None:
    for path in ("/run/clamav/clamd.ctl", "/var/run/clamav/clamd.ctl", str(tmp_path / "clamd.sock")):
        assert socket_path(path) == path


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
