"""Connections that come in under the service: for who is selected by what it is, however it came to listen.

Its hook is on all cgroups of the machine, so that every policy here selects only programs that this test made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Mitmsec, Network

pytestmark = pytest.mark.root
SERVER = """
import socket, sys
l = socket.create_server(("127.0.0.1", 0)); print(l.getsockname()[1], flush=True)
while True:
    c, _ = l.accept(); c.sendall(c.recv(9)); c.close()
"""
CLIENT = "import socket, sys; s = socket.create_connection(sys.argv[1:]); s.sendall(b'question'); print(s.recv(9))"
SELECTED = '[[application]]\nname = "ours"\npath = ["{path}"]\n'


class Programs:
    """Two servers of one kind: one that the policy selects, one that it does not."""

    def __init__(self, mitmsec: Mitmsec, folder: Path) -> None:
        folder.chmod(0o755)
        self.mitmsec = mitmsec
        self.selected, self.other = folder / "selected-python", folder / "other-python"
        for copy in (self.selected, self.other):
            shutil.copy(os.path.realpath(sys.executable), copy)
        self.running: list[subprocess.Popen[str]] = []

    def serve(self, program: Path | str) -> tuple[int, str]:
        """A server; its pid and port."""
        command = self.mitmsec.network.inside(str(program), "-S", "-c", SERVER)
        environment = os.environ | {"PYTHONHOME": sys.base_prefix}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.running.append(process)
        assert process.stdout is not None
        return process.pid, process.stdout.readline().strip()

    def call(self, port: str) -> None:
        command = self.mitmsec.network.inside(sys.executable, "-S", "-c", CLIENT, "127.0.0.1", port)
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"b'question'\n"

    def command(self, word: str, *options: str) -> None:
        command = self.mitmsec.command(word, "--state", str(self.mitmsec.state), *options)
        subprocess.run(command, check=True, capture_output=True, timeout=90, env=self.mitmsec.environment())

    def start(self, path: Path | str) -> None:
        self.command("start", "--policy", self.mitmsec.policy(SELECTED.format(path=path)))

    def stop(self) -> list[dict[str, Any]]:
        self.command("stop")
        return [event for event in self.mitmsec.of_kind("connection") if event["direction"] == "inbound"]


@pytest.fixture
def programs(network: Network, mitmsec: Mitmsec, tmp_path: Path) -> Any:
    made = Programs(mitmsec, tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()
    stop = mitmsec.command("stop", "--state", str(mitmsec.state))
    subprocess.run(stop, capture_output=True, env=mitmsec.environment())
    until = time.monotonic() + 20
    while (mitmsec.state / "run" / "control.sock").exists() and time.monotonic() < until:
        time.sleep(0.05)


def test_whoever_is_selected_is_told_whether_it_listened_before_or_begins_later(programs: Programs) -> None:
    before = programs.serve(programs.selected)
    other = programs.serve(programs.other)
    programs.start(programs.selected)
    later = programs.serve(programs.selected)
    for _, port in (before, other, later):
        programs.call(port)
    events = programs.stop()
    assert [(event["process"]["pid"], str(event["local"]["port"])) for event in events] == [before, later]
    assert {event["process"]["confidence"] for event in events} == {"kernel"}
    assert {event["process"]["exe"] for event in events} == {str(programs.selected)}
    assert {(event["action"], event["rule"]) for event in events} == {("bypass", "defaults")}


def test_a_reload_selects_others(programs: Programs) -> None:
    (first_pid, first), (second_pid, second) = programs.serve(programs.selected), programs.serve(programs.other)
    programs.start(programs.selected)
    programs.call(second)
    programs.command("reload", "--policy", programs.mitmsec.policy(SELECTED.format(path=programs.other)))
    programs.call(first)
    programs.call(second)
    assert [event["process"]["pid"] for event in programs.stop()] == [second_pid]
    assert first_pid != second_pid
