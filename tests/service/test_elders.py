"""A listener that was passed on is an ancestor's too, as long as that has it open, unless it opens it for others."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.service import elders
from mitmsec.service.elders import Elders
from mitmsec_redirect.open_listeners import sockets_of

PASSES_ON = """
import os, sys
first = os.fork()
if not first:
    second = os.fork()
    if not second:
        print(os.getppid(), os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
if sys.argv[1] == "closes":
    os.close(int(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@contextlib.contextmanager
def started(sock: socket.socket, does: str, program: str = sys.executable) -> Iterator[tuple[int, int, int]]:
    """A process, its child and its grandchild, which all were given the socket."""
    command = [program, "-I", "-S", "-c", PASSES_ON, does, str(sock.fileno())]
    environment = os.environ | {"PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[sock.fileno()], env=environment, text=True
    ) as process:
        assert process.stdout is not None
        child, grandchild = map(int, (process.stdout.readline() + process.stdout.readline()).split())
        yield process.pid, child, grandchild


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_it_is_any_ancestors_that_is_not_selected_and_has_it_open(sock: socket.socket) -> None:
    with started(sock, "keeps") as (parent, child, grandchild):
        lineage = [child, parent, os.getpid()]
        for ours, theirs in (([], True), (lineage[:1], True), (lineage[:2], True), (lineage, False)):
            assert Elders(lambda ours=ours: ours, 1).have(inode_of(sock), grandchild) is theirs  # type: ignore[misc]
        assert not Elders(lambda: lineage, 1).have(inode_of(sock), 1 << 22), "nobody has no ancestors"


def test_who_has_closed_it_has_it_no_more(sock: socket.socket) -> None:
    with started(sock, "closes") as (parent, child, grandchild):
        inode = inode_of(sock)
        assert Elders(lambda: [child], 1).have(inode, grandchild), "this process has it"
        sock.close()
        assert not Elders(lambda: [child], 1).have(inode, grandchild)
        assert parent not in (child, grandchild)


def test_what_a_manager_has_open_is_for_whom_it_starts(sock: socket.socket, tmp_path: Path) -> None:
    """By its pid, or, one of a user, by its file's name."""
    inode, me = inode_of(sock), os.getpid()
    with started(sock, "closes") as (_, child, grandchild):
        assert not Elders(lambda: [child], me).have(inode, grandchild)
    manager = tmp_path / elders.MANAGER_FILE
    shutil.copy(os.path.realpath(sys.executable), manager)
    with started(sock, "keeps", str(manager)) as (_, _, grandchild):
        assert not Elders(lambda: [me], 1).have(inode, grandchild)


def test_who_is_selected_is_asked_once_at_most(sock: socket.socket) -> None:
    asked = []
    made = Elders(lambda: asked.append(1) or [], 1)  # type: ignore[func-returns-value]
    with started(sock, "keeps") as (_, _, grandchild):
        assert asked == []
        assert made.have(inode_of(sock), grandchild)
        assert made.have(inode_of(sock), grandchild)
    assert asked == [1]


def test_beyond_a_bound_nobody_knows_what_ancestors_have_open(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are, and how much each has open, is the choice of whoever started them."""
    asked: list[int] = []

    def look(pid: int) -> tuple[frozenset[int], int]:
        asked.append(pid)
        return sockets_of(pid)

    monkeypatch.setattr(elders, "sockets_of", look)
    with started(sock, "closes") as (_, child, grandchild):
        inode = inode_of(sock)
        sock.close()
        assert Elders(lambda: [child], 1, 1 << 20).have(inode, grandchild) is False
        assert len(asked) > 1
        for most, looked_at in ((0, 0), (1, 0), (2 * elders.PROCESS_COST + 1, 1)):
            asked.clear()
            bounded = Elders(list, 1, most)
            for _ in range(2):
                assert bounded.have(inode, grandchild) is None
            assert len(asked) <= looked_at
