"""Tables that a dead owner left are found wherever somebody lives, and no other table is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.service import left_tables
from mitmsec_redirect import nft
from mitmsec_redirect.backend import BackendUnavailable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft", path=nft.FOLDERS) is None, reason="nft is not installed (Debian: nftables)"),
]
OURS = f"test{os.getpid()}"


@pytest.fixture(params=["named", "lived in"])
def network(request: pytest.FixtureRequest) -> Iterator[int]:
    """A network namespace: with a name and nobody in it, or with a process and no name."""
    name = f"mitmsec-left-{os.getpid()}"
    sleeper = None
    if request.param == "named":
        subprocess.run(["ip", "netns", "add", name], check=True)
        path = Path("/run/netns", name)
    else:
        script = ["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"]
        sleeper = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "up\n"
        path = Path(f"/proc/{sleeper.pid}/ns/net")
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
        if sleeper is not None:
            sleeper.kill()
            sleeper.communicate()
        else:
            subprocess.run(["ip", "netns", "delete", name], check=True)


def left(network: int, name: str, owner: int) -> str:
    """A table as one of ours says whose it is."""
    nft.load(f'create table inet {name} {{ comment "{nft.owner_remark(owner)}"; }}', network)
    return name


def ended() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_what_a_dead_owner_of_this_state_left_and_nobody_needs_goes(network: int) -> None:
    dead = ended()
    gone = left(network, f"mitmsec-{OURS}-gone", dead)
    busy = left(network, f"mitmsec-{OURS}-busy", dead)
    living = left(network, f"mitmsec-{OURS}-living", os.getpid())
    left(network, f"mitmsec-other{OURS}-x", dead)
    assert left_tables.reap(OURS, keep=[busy]) == [(gone, "")]
    assert left_tables.remaining(OURS) == [f"table {busy}", f"table {living}"]
    assert left_tables.reap(OURS) == [(busy, "")]
    assert left_tables.reap(OURS) == []
    assert [table.name for table in nft.leftovers("mitmsec-other", network)] == [f"mitmsec-other{OURS}-x"]


@pytest.mark.parametrize("error", [OSError("no answer"), BackendUnavailable("no nft", "install it")])
def test_what_cannot_be_removed_is_told_with_its_place(
    network: int, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    left(network, f"mitmsec-{OURS}-x", ended())
    monkeypatch.setattr(nft, "reap", refuse)
    ((what, why),) = left_tables.reap(OURS)  # and of all the namespaces without a table nothing
    assert what.startswith(f"mitmsec-{OURS}-* in /")
    assert why == str(error)


def test_a_kernel_without_tables_has_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(nft, "leftovers", unsupported)
    assert left_tables.reap(OURS) == left_tables.remaining(OURS) == []


def test_where_there_is_no_nft_nothing_is_visited(network: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left(network, f"mitmsec-{OURS}-x", ended())
    monkeypatch.setattr(nft, "FOLDERS", "/nowhere")
    assert left_tables.reap(OURS) == left_tables.remaining(OURS) == []
