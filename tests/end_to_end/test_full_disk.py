"""The disk of the state is full, for real, while a service runs: what passes is what `on_failure` says."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MITMSEC, Mitmsec, Network, here
from test_service import Service, until

from mitmsec.service.state import State

pytestmark = pytest.mark.root

ROOM = "size=12m,mode=711"  # more than a service and its log take here


REFUSED = {35, 7}  # of curl: reset by the gate, or by the hook, where the gate has not had its turn for a while


class Beside(Mitmsec):
    """In the network, and in the mount namespace of who looks at the log: there the small disk is mounted."""

    def command(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.network.name}", *MITMSEC, *arguments]


class Disk:
    """A small one, mounted at the state."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._ballast = state / "run" / "ballast"

    def fill(self) -> None:
        with open(self._ballast, "wb", buffering=0) as file:
            while (free := os.statvfs(self._state)).f_bfree:
                with contextlib.suppress(OSError):  # others write, too
                    file.write(bytes(free.f_bsize * free.f_bfree))

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(mitmsec: Mitmsec) -> Iterator[Disk]:
    mitmsec.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ROOM, "none", mitmsec.state], check=True)
    try:
        yield Disk(mitmsec.state)
        mitmsec.network.states.add(State(mitmsec.state).identity())
    finally:
        subprocess.run(["umount", "--lazy", mitmsec.state], check=True)


@pytest.fixture
def service(disk: Disk, origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> Iterator[Service]:
    tmp_path.chmod(0o755)
    made = Service(Beside(origin, mitmsec.state), tmp_path)
    yield made
    made.call("stop", check=False)


def test_a_full_disk_follows_on_failure_and_what_was_on_its_way_is_recorded_later(service: Service, disk: Disk) -> None:
    """Under `closed` nothing passes that cannot be recorded; under `open` it passes, and is not decrypted."""
    state = service.mitmsec.state

    def faults(what: str) -> list[str]:
        return [one.get("failed", "") for one in service.mitmsec.of_kind("fault") if one["what"] == what]

    service.start(action="decrypt", on_failure="closed")
    assert service.fetch("", "-k").stdout.startswith("hello")
    assert until(lambda: service.mitmsec.of_kind("request"))

    disk.fill()
    assert until(lambda: service.fetch("", "-k").returncode == 35)  # reset: the first is what the disk refuses
    refused = service.call("reload", "--policy", service.policy("bypass", "open"), check=False)
    assert (refused.returncode, "the disk is full: " in refused.stderr) == (3, True), refused
    assert "nothing was changed; make room" in refused.stderr
    assert service.fetch().returncode in REFUSED  # the old policy is in force
    assert not list((state / "policies").glob("writing"))
    assert not faults("log_unwritable")

    disk.empty()
    assert until(lambda: faults("log_unwritable"))
    assert until(lambda: service.fetch("", "-k").stdout.startswith("hello"))
    assert "closed" in faults("recorder_gone")

    service.call("reload", "--policy", service.policy("decrypt", "open"))
    disk.fill()
    assert until(lambda: service.fetch().stdout.startswith("hello"))  # the origin's own certificate: not decrypted
    disk.empty()
    assert until(lambda: len(faults("log_unwritable")) == 2)
    assert until(lambda: service.fetch("", "-k").stdout.startswith("hello") and service.fetch().returncode == 60)
    assert "open" in faults("recorder_gone")
    assert not faults("events_lost")
    service.call("stop")
    here("audit", "verify", "--state", str(state))
