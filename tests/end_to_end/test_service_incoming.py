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
from incoming_stage import until_listens
from keyed_stage import POLICY, PORT, Shop

pytestmark = pytest.mark.root
SERVER = """
import socket, sys
l = socket.create_server(("127.0.0.1", 0)); print(l.getsockname()[1], flush=True)
while True:
    c, _ = l.accept(); c.sendall(c.recv(9)); c.close()
"""
CLIENT = "import socket, sys; s = socket.create_connection(sys.argv[1:]); s.sendall(b'question'); print(s.recv(9))"
INBOUND = '[defaults]\ninbound = "{action}"\n'
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

    def shop(self) -> tuple[Shop, Path]:
        """A service whose key is known, and its program."""
        nginx = Path(shutil.copy(shutil.which("nginx") or "nginx", self.selected.parent / "nginx-of-ours"))
        shop = Shop(self.mitmsec.state.parent, "127.0.0.1")
        command = self.mitmsec.network.inside(*shop.command(nginx))
        self.running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        until_listens(self.mitmsec.network, PORT)
        return shop, nginx

    def call(self, port: str) -> None:
        command = self.mitmsec.network.inside(sys.executable, "-S", "-c", CLIENT, "127.0.0.1", port)
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"b'question'\n"

    def command(self, word: str, *options: str) -> None:
        command = self.mitmsec.command(word, "--state", str(self.mitmsec.state), *options)
        subprocess.run(command, check=True, capture_output=True, timeout=90, env=self.mitmsec.environment())

    def start(self, path: Path | str) -> None:
        self.command("start", "--workers", "1", "--policy", self.mitmsec.policy(SELECTED.format(path=path)))

    def reload(self, path: Path | str, more: str) -> None:
        self.command("reload", "--policy", self.mitmsec.policy(more + SELECTED.format(path=path)))

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


def test_what_a_policy_says_of_them_holds_for_who_is_selected_and_touches_nobody_else(programs: Programs) -> None:
    """Whoever listened before or begins later is told, blocked, captured; a reload changes who, and what is done."""
    selected, other = programs.selected, programs.other
    before, stranger = programs.serve(selected), programs.serve(other)
    programs.start(selected)
    later = programs.serve(selected)
    for _, port in (before, stranger, later):
        programs.call(port)
    programs.reload(selected, INBOUND.format(action="block"))
    latest, newcomer = programs.serve(selected), programs.serve(other)
    for _, port in (before, later, latest):
        with pytest.raises(subprocess.CalledProcessError):
            programs.call(port)
    for _, port in (stranger, newcomer):
        programs.call(port)
    programs.reload(other, INBOUND.format(action="capture"))
    for _, port in (before, later, latest, stranger, newcomer):
        programs.call(port)
    programs.reload(other, "")
    programs.call(stranger[1])
    shop, nginx = programs.shop()
    programs.reload(nginx, POLICY)
    assert (
        shop.fetch(programs.mitmsec.network.inside(), "--http1.1", "-d", "about Project Eagle") == "127.0.0.1 HTTP/1.1"
    )
    events = programs.stop()
    unread = events[:2]
    assert [(event["process"]["pid"], str(event["local"]["port"])) for event in unread] == [before, later]
    assert {event["process"]["confidence"] for event in unread} == {"kernel"}
    assert {event["process"]["exe"] for event in unread} == {str(selected)}
    assert {(event["action"], event["rule"]) for event in unread} == {("bypass", "defaults")}
    told = [(event["process"]["pid"], event["action"], event["rule"]) for event in events[2:]]
    blocked = [(pid, "block", "defaults") for pid, _ in (before, later, latest)]
    captured = [(pid, "capture", "defaults") for pid, _ in (stranger, newcomer)]
    read = (programs.running[-1].pid, "decrypt", "defaults")
    assert told == [*blocked, *captured, (stranger[0], "bypass", "defaults"), read]
    assert [finding["location"] for finding in programs.mitmsec.of_kind("finding")] == ["request.body+6"]
