"""Listeners are found with where they listen, and with a process that has them open."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from descriptors import descriptors

from mitmsec_redirect.open_listeners import OpenListener, holders, open_listeners
from mitmsec_redirect.records import address_bytes

COOKIE = 57  # SO_COOKIE


def found(sock: socket.socket) -> OpenListener:
    cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, COOKIE, 8), sys.byteorder)
    (one,) = [one for one in open_listeners() if one.cookie == cookie]
    return one


@pytest.mark.parametrize(
    ("address", "served", "v6only"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("::1", "::1", False),
        ("::", "::", False),
        ("::", "::", True),
        ("::ffff:127.0.0.1", "127.0.0.1", False),
        ("::ffff:0.0.0.0", "0.0.0.0", False),
    ],
)
def test_it_is_told_by_what_it_serves(address: str, served: str, *, v6only: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        sock.bind((address, 0))
        sock.listen()
        one = found(sock)
        assert (one.local, one.port, one.device) == (address_bytes(served), sock.getsockname()[1], 0)
        assert one.also_v4 is (address == "::" and not v6only)
        assert one.inode == os.fstat(sock.fileno()).st_ino
        assert one.can_be_led


def test_what_does_not_listen_is_none() -> None:
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as server:
        bound.bind(("127.0.0.2", 0))
        with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
            others = {os.fstat(sock.fileno()).st_ino for sock in (bound, client, accepted)}
            assert not others & {one.inode for one in open_listeners()}


@pytest.mark.root
def test_who_listens_on_one_device_cannot_be_led() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert found(sock).device
        assert not found(sock).can_be_led


def test_a_link_local_address_is_of_one_device_and_can_be_led() -> None:
    link_local = OpenListener(1, 1, bytes.fromhex("fe80" + 14 * "00"), 80, False, 2, 0)
    assert link_local.can_be_led


def test_it_is_known_who_has_it_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine, socket.create_server(("127.0.0.1", 0)) as passed_on:
        command = [sys.executable, "-I", "-S", "-c", "print(flush=True); input()"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[passed_on.fileno()]
        ) as heir:
            assert heir.stdout is not None
            heir.stdout.readline()
            inodes = {os.fstat(sock.fileno()).st_ino for sock in (mine, passed_on)}
            assert holders([heir.pid]) == {os.fstat(passed_on.fileno()).st_ino: heir.pid}
            assert {holders([os.getpid(), heir.pid])[inode] for inode in inodes} == {os.getpid()}
            heir.communicate(b"\n")
        assert holders([heir.pid]) == {}


def test_of_a_process_with_very_many_descriptors_the_first_are_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as low, socket.create_server(("127.0.0.1", 0)) as high:
        below = sum(int(fd) < high.fileno() for fd in descriptors())
        inodes = [os.fstat(sock.fileno()).st_ino for sock in (low, high)]
        assert [inode in holders([os.getpid()], below) for inode in inodes] == [True, False]
        assert [inode in holders([os.getpid()], below + 1) for inode in inodes] == [True, True]
