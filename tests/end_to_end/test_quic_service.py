"""QUIC under `mitmsec start`: of selected programs, by the policy that is in force, and of nobody else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import V4, Mitmsec, Network, status_of
from quic_stage import AIOQUIC, H3, h3_origin

pytestmark = pytest.mark.root

POLICY = """
[defaults]
action = "bypass"
quic = "{quic}"
[[application]]
name = "ours"
path = ["{path}"]
[[rule]]
name = "no bank"
host = ["bank.test"]
action = "block"
"""
DECRYPT = """
[defaults]
quic = "decrypt"
upstream_roots = ["origins.pem"]
[[application]]
name = "ours"
path = ["{path}"]
"""
BOTH = ("bank.test", "origin.test")


class Service:
    """The service, and a copy of Python that it selects."""

    def __init__(self, mitmsec: Mitmsec, folder: Path) -> None:
        self.mitmsec, self.python = mitmsec, folder / "selected-python"
        shutil.copy(os.path.realpath(sys.executable), self.python)
        self.roots = mitmsec.network.root_pem

    def call(self, word: str, *arguments: str) -> None:
        command = self.mitmsec.command(word, "--state", str(self.mitmsec.state), *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=self.mitmsec.environment())
        assert done.returncode == 0, done.stderr

    def policy(self, quic: str) -> str:
        return self.mitmsec.policy(POLICY.format(quic=quic, path=self.python))

    def asks(self, program: str | Path, *hosts: str) -> list[dict[str, Any]]:
        """What aioquic comes to, run by `program`."""
        environment = self.mitmsec.environment() | {
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "SSL_CERT_FILE": str(self.roots),
        }
        command = self.mitmsec.network.inside(str(program), "-c", AIOQUIC, V4, *hosts)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def of_quic(self, count: int) -> list[dict[str, Any]]:
        """What is on record of it, once there is so much."""
        until = time.monotonic() + 20
        while len(found := self._of_quic()) < count and time.monotonic() < until:
            time.sleep(0.2)
        return found

    def _of_quic(self) -> list[dict[str, Any]]:
        return [event for event in self.mitmsec.of_kind("connection") if event["protocol"] == "quic"]


@pytest.fixture
def h3(origin: Network) -> Iterator[H3]:
    with h3_origin(origin) as told:
        yield told


@pytest.fixture
def service(origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> Iterator[Service]:
    tmp_path.chmod(0o755)
    made = Service(mitmsec, tmp_path)
    yield made
    command = mitmsec.command("stop", "--state", str(mitmsec.state))
    subprocess.run(command, capture_output=True, timeout=90, check=False, env=mitmsec.environment())


def test_a_reload_leads_quic_of_selected_programs_and_of_nobody_else(h3: H3, service: Service) -> None:
    """Unread, also by the gate that follows one that died; and decrypted."""
    service.call("start", "--workers", "1", "--policy", service.policy("refuse"))
    service.call("reload", "--policy", service.policy("bypass"))
    refused, passed = service.asks(service.python, *BOTH)
    assert (refused["error"], passed["status"]) == ("ConnectionError", "200")
    assert [told["status"] for told in service.asks(os.path.realpath(sys.executable), *BOTH)] == ["200", "200"]
    seen = {(one["remote"]["host"], one["action"], one["process"]["exe"]) for one in service.of_quic(2)}
    assert seen == {("bank.test", "block", str(service.python)), ("origin.test", "bypass", str(service.python))}
    assert len(service.of_quic(2)) == 2
    assert {one["process"]["confidence"] for one in service.of_quic(2)} == {"kernel"}
    the_next_gate_refuses_the_same(service)
    it_is_decrypted_for_selected_programs_and_for_nobody_else(service)


def the_next_gate_refuses_the_same(service: Service) -> None:
    gate = next(pid for name, pid, _ in status_of(service.mitmsec).processes if name == "gate")
    os.kill(gate, signal.SIGKILL)
    until = time.monotonic() + 20
    while gate in {pid for _, pid, _ in status_of(service.mitmsec).processes} and time.monotonic() < until:
        time.sleep(0.1)
    refused, passed = service.asks(service.python, *BOTH)
    assert (refused["error"], passed["status"]) == ("ConnectionError", "200")


def it_is_decrypted_for_selected_programs_and_for_nobody_else(service: Service) -> None:
    mitmsec = service.mitmsec
    shutil.copy(mitmsec.network.root_pem, mitmsec.state.parent / "origins.pem")
    before = {one["id"] for one in service.of_quic(4)}
    service.call("reload", "--policy", mitmsec.policy(DECRYPT.format(path=service.python)))
    service.roots = mitmsec.state.parent / "all.pem"
    own = (mitmsec.state / "ca" / "root.pem").read_text()
    service.roots.write_text(mitmsec.network.root_pem.read_text() + own)
    (told,) = service.asks(service.python, "origin.test")
    assert told["status"] == "200"
    (other,) = service.asks(os.path.realpath(sys.executable), "origin.test")
    assert other["status"] == "200"
    (flow,) = (one for one in service.of_quic(len(before) + 1) if one["id"] not in before)
    assert (flow["action"], flow["process"]["exe"]) == ("decrypt", str(service.python))
    end = time.monotonic() + 20
    while not (requests := mitmsec.of_kind("request")) and time.monotonic() < end:
        time.sleep(0.2)
    (request,) = requests
    assert (request["http_version"], request["status"]) == ("HTTP/3", 200)
