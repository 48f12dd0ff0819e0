"""The service: programs are selected by what they are, whoever starts them; in a network of our own, by real programs.

Its hook is on all cgroups of the machine, so that every policy here selects only programs that this test made.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
from click.testing import CliRunner
from conftest import V4, Mitmsec, Network, here, status_of
from yara_stage import EVIL

from mitmsec.cli import cli

pytestmark = pytest.mark.root

URL = "https://origin.test/hello"
POLICY = """
[defaults]
action = "{action}"
on_failure = "{on_failure}"
[[application]]
name = "ours"
path = ["{path}"]
"""


service_backends = pytest.mark.parametrize("mitmsec", ["connect_hook", "windivert"], indirect=True)


class Service:
    """The command line of the service, and a copy of curl that its policy selects."""

    def __init__(self, mitmsec: Mitmsec, folder: Path) -> None:
        self.mitmsec, self.folder = mitmsec, folder
        self.curl = folder / "selected-curl"
        shutil.copy("/usr/bin/curl", self.curl)

    def policy(self, action: str = "bypass", on_failure: str = "open", path: str = "", more: str = "") -> str:
        text = POLICY.format(action=action, on_failure=on_failure, path=path or self.curl)
        return self.mitmsec.policy(text + more)

    def call(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = self.mitmsec.command(arguments[0], "--state", str(self.mitmsec.state), *arguments[1:])
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=self.mitmsec.environment())
        assert not check or done.returncode == 0, done.stderr
        return done

    def status(self) -> dict[str, Any]:
        """In this process: half a second of a core less for each look."""
        found: dict[str, Any] = json.loads(here("status", "--state", str(self.mitmsec.state), "--json"))
        return found

    def start(self, **policy: str) -> None:
        choice = ["--backend", self.mitmsec.backend] if self.mitmsec.backend else []
        said = self.call("start", *choice, "--workers", "1", "--policy", self.policy(**policy)).stderr
        assert "the service is at work" in said

    def fetch(self, program: Path | str = "", *options: str) -> subprocess.CompletedProcess[str]:
        command = self.mitmsec.network.inside(str(program or self.curl), "-sS", "--max-time", "20", *options, URL)
        return subprocess.run(command, capture_output=True, text=True, env=self.mitmsec.environment(), timeout=60)

    def connections(self) -> list[dict[str, Any]]:
        return self.mitmsec.of_kind("connection")

    def settled(self, count: int) -> list[dict[str, Any]]:
        """The connections on record, once there are so many."""
        until = time.monotonic() + 30
        while len(found := self.connections()) < count and time.monotonic() < until:
            time.sleep(0.1)
        assert len(found) == count, found
        return found


@pytest.fixture
def service(origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> Iterator[Service]:
    tmp_path.chmod(0o755)
    made = Service(mitmsec, tmp_path)
    yield made
    made.call("stop", check=False)
    until = time.monotonic() + 20
    while (mitmsec.state / "run" / "control.sock").exists() and time.monotonic() < until:
        time.sleep(0.05)


def until(holds: Any, within_s: float = 10.0) -> Any:
    end = time.monotonic() + within_s
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@service_backends
def test_who_is_selected_is_diverted_and_recorded_and_nobody_else_is(service: Service) -> None:
    service.start()
    for program in ("/usr/bin/curl", service.curl):
        assert service.fetch(program).stdout.startswith("hello")
        asked = service.mitmsec.network.inside(str(program), "-s", "--max-time", "0.2", f"tftp://{V4}:9/over-udp")
        subprocess.run(asked, capture_output=True, timeout=30)
    status = service.status()
    assert (status["service"]["applications"], status["service"]["backend"]) == (["ours"], service.mitmsec.backend)
    assert service.call("stop").stderr.startswith("mitmsec: the service has stopped; ")
    seen, datagrams = sorted(service.connections(), key=lambda event: event["protocol"] == "udp")
    assert (seen["process"]["exe"], seen["remote"]["host"], seen["action"]) == (
        str(service.curl), "origin.test", "bypass",
    )  # fmt: skip
    assert (datagrams["process"]["exe"], datagrams["remote"]["port"]) == (str(service.curl), 9)
    assert (datagrams["datagrams"]["sent"] > 0, datagrams["datagrams"]["received"]) == (True, 0)
    operations = [event["operation"] for event in service.mitmsec.of_kind("service")]
    assert operations == ["service_started", "service_stopped"]
    assert service.call("status", check=False).returncode == 1


@pytest.fixture
def running_already(service: Service) -> Iterator[RunsAlready]:
    """A program that was there before the service."""
    python = service.folder / "selected-python"
    shutil.copy(os.path.realpath(sys.executable), python)
    made = RunsAlready(service, python)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


class RunsAlready:
    """Connects when it is told to."""

    def __init__(self, service: Service, python: Path) -> None:
        code = (
            "import socket, sys\n"
            "for line in sys.stdin: socket.create_connection(('origin.test', 443)).close(); print(flush=True)"
        )
        self.python = python
        self.process = subprocess.Popen(
            service.mitmsec.network.inside(str(python), "-S", "-c", code),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONHOME": sys.base_prefix},
        )  # fmt: skip

    def connect(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@service_backends
def test_who_runs_already_and_who_lives_for_milliseconds_is_selected_too(
    service: Service, running_already: RunsAlready
) -> None:
    """From its next connection on; from its first. Each of a hundred is another file, which nobody has seen before."""
    running_already.connect()  # nobody sees it
    shell = Path(os.path.realpath("/bin/bash"))
    service.start(path=f'{running_already.python}", "{service.folder}/brief-*')  # a glob names them all
    running_already.connect()
    (seen,) = service.settled(1)
    assert (seen["process"]["exe"], seen["process"]["pid"]) == (
        str(running_already.python),
        running_already.process.pid,
    )
    assert seen["process"]["confidence"] == "kernel"
    for number in range(100):
        brief = service.folder / f"brief-{number}"
        shutil.copy(shell, brief)
        command = service.mitmsec.network.inside(str(brief), "-c", "exec 3<>/dev/tcp/203.0.113.10/443")
        assert subprocess.run(command, timeout=30).returncode == 0
    brief_ones = [one for one in service.settled(101) if one["id"] != seen["id"]]
    assert {Path(one["process"]["exe"]).name for one in brief_ones} == {f"brief-{number}" for number in range(100)}
    assert {one["process"]["confidence"] for one in brief_ones} == {"kernel"}


@service_backends
def test_everything_is_a_selection_and_our_own_processes_are_no_part_of_it(service: Service) -> None:
    """Everything in this network: the others follow on_failure, which is open, and nothing is decrypted."""
    with machine.alone(machine.EVERYTHING):
        service.start(path="*")
        assert service.fetch("/usr/bin/curl").stdout.startswith("hello")
        seen = until(lambda: [one for one in service.connections() if one["remote"]["host"] == "origin.test"])
        assert seen[0]["process"]["exe"] == "/usr/bin/curl"
        ours = {pid for _, pid, _ in status_of(service.mitmsec).processes}
        assert not ours & {one["process"]["pid"] for one in service.connections()}
        service.call("stop")


@service_backends
def test_a_run_beside_the_service_is_diverted_once_and_by_its_own_policy(service: Service) -> None:
    service.start(action="block")
    service.mitmsec.backend = "connect_hook"  # windivert serves one session in a namespace
    done = service.mitmsec.run("--", str(service.curl), "-sS", URL)
    assert done.stdout.startswith("hello"), done.stderr
    (seen,) = service.settled(1)
    assert seen["action"] == "decrypt"


@service_backends
def test_reload_changes_new_connections_and_drops_no_live_one(service: Service) -> None:
    service.start()
    slow = subprocess.Popen(
        service.mitmsec.network.inside(
            str(service.curl), "-sS", "--limit-rate", "1M", "-o", "/dev/null", "-w", "%{size_download}",
            "https://origin.test/megabytes",
        ),
        stdout=subprocess.PIPE, text=True, env=service.mitmsec.environment(),
    )  # fmt: skip
    assert until(lambda: service.status()["flows"][0][1])
    assert "worker" not in roles_of(service)
    said = service.call("reload", "--policy", service.policy("block")).stderr
    assert "new connections are decided under" in said
    refused = service.fetch()
    assert refused.returncode == 35, refused
    assert slow.communicate(timeout=60)[0] == str(8 << 20)
    expected = [("block", "blocked"), ("bypass", "completed")]
    if not until(lambda: decided_over_tls(service) == expected, within_s=30):  # as a count, two of anything would do
        seen = [service.mitmsec.of_kind(kind) for kind in ("connection", "fault", "policy", "service")]
        pytest.fail(f"{seen}, {refused}")
    loaded = [one["policy"] for one in service.mitmsec.of_kind("policy")]
    assert len(set(loaded)) == len(loaded) == 2
    decided = {one["action"]: one["policy"] for one in service.connections() if one["protocol"] == "tls"}
    assert decided == {"bypass": loaded[0], "block": loaded[1]}  # a live flow keeps what it was decided under
    for one in loaded:
        kept = service.mitmsec.state / "policies" / f"{one}.json.gz"
        assert hashlib.sha256(gzip.decompress(kept.read_bytes())).hexdigest() == one
    first = next(one["id"] for one in service.connections() if one["action"] == "bypass" and one["protocol"] == "tls")
    state = ("--state", str(service.mitmsec.state))
    told = [json.loads(line) for line in here("audit", "explain", first, "--json", *state).splitlines()]
    assert (told[-1]["policy"], told[-1]["same"], told[-1]["action"]) == (loaded[0], True, "bypass")
    service.call("reload", "--policy", service.policy("decrypt"))
    assert service.fetch("", "-k").stdout.startswith("hello")
    assert "worker" in roles_of(service)
    assert until(lambda: [one["action"] for one in service.connections() if one["action"] == "decrypt"])


def roles_of(service: Service) -> set[str]:
    return {role for role, _, _ in status_of(service.mitmsec).processes}


def decided_over_tls(service: Service) -> list[tuple[str, str]]:
    """What was done with each connection, and how it ended; a UDP flow, which passes whatever is decided, is none."""
    return sorted((one["action"], one["outcome"]) for one in service.connections() if one["protocol"] == "tls")


@pytest.mark.checklist("C11")
def test_a_program_that_pins_passes_after_three_refusals_until_a_reload(service: Service) -> None:
    """curl that trusts the origins' own CA only, another process each time; a worker's death changes nothing."""
    trusting = f'on_failure = "open"\nupstream_roots = ["{service.mitmsec.network.root_pem}"]'
    text = POLICY.format(action="decrypt", on_failure="open", path=service.curl)
    policy = service.mitmsec.policy(text.replace('on_failure = "open"', trusting))
    service.call("start", "--workers", "1", "--policy", policy)
    assert [service.fetch().returncode for _ in range(3)] == [60, 60, 60]
    assert until(lambda: service.status()["learned"])
    assert service.fetch().stdout.startswith("hello")
    (worker,) = [pid for role, pid, _ in status_of(service.mitmsec).processes if role == "worker"]
    os.kill(worker, signal.SIGKILL)
    assert service.fetch().stdout.startswith("hello")
    seen = service.settled(5)
    assert [one["action"] for one in seen] == ["decrypt"] * 3 + ["bypass"] * 2
    assert {one["tls"]["client"]["refusal"] for one in seen[:3]} == {"alert"}
    assert "it refused our certificate 3 times" in seen[4]["reason"]
    (fault,) = [one for one in service.mitmsec.of_kind("fault") if one["what"] == "learned_bypass"]
    assert (fault["failed"], fault["connection"]) == ("open", seen[2]["id"])
    assert f"{service.curl} to origin.test, port 443, passes for 12 h" in fault["detail"]
    assert str(service.curl) in service.call("status").stdout.replace("\n", "")
    service.call("reload", "--policy", policy)
    assert service.status()["learned"] == []
    assert service.fetch().returncode == 60


SCANNED = """
[inspector.yara]
rules = ["@{}"]
[[rule]]
name = "scanned"
action = "decrypt"
inspect = ["yara"]
on_finding = "block"
"""


def test_reload_brings_the_rules_of_yara_that_are_in_the_files_by_then(service: Service) -> None:
    rules = service.folder / "own.yar"
    rules.write_text(EVIL)
    policy = service.policy(more=SCANNED.format(rules))

    def answers() -> list[str]:
        said = ("-k", "-o", "/dev/null", "-w", "%{http_code}", "--data")
        return [service.fetch("", *said, content).stdout for content in ("evil-bytes", "other-bytes")]

    service.call("start", "--workers", "1", "--policy", policy)
    assert answers() == ["403", "200"]
    rules.write_text("rule")
    wrong = service.call("reload", "--policy", policy, check=False)
    assert (wrong.returncode, f"{rules}:1: syntax error" in wrong.stderr) == (2, True), wrong
    assert answers() == ["403", "200"]
    rules.write_text(EVIL.replace("evil-bytes", "other-bytes"))
    service.call("reload", "--policy", policy)
    assert answers() == ["200", "403"]
    assert len({one["policy"] for one in service.mitmsec.of_kind("policy")}) == 2
    faults = [one["what"] for one in service.mitmsec.of_kind("fault")]
    assert [what for what in faults if what.startswith(("scanner", "inspector", "not_inspected"))] == []


def test_a_policy_with_errors_changes_nothing(service: Service) -> None:
    service.start()
    wrong = service.call("reload", "--policy", service.mitmsec.policy("[[rule]]\nname = 3\n"), check=False)
    assert wrong.returncode == 2
    nobody = service.call("reload", "--policy", service.mitmsec.policy(""), check=False)
    assert nobody.returncode == 2
    assert "names no [[application]]" in nobody.stderr
    assert service.fetch().stdout.startswith("hello")
    assert service.settled(1)[0]["action"] == "bypass"
    hears_nothing_more = gate_of(service)
    os.kill(hears_nothing_more, signal.SIGSTOP)
    unanswered = service.call("reload", "--policy", service.policy("block"), check=False)
    assert (unanswered.returncode, "the gate does not answer" in unanswered.stderr) == (125, True), unanswered
    assert until(lambda: gate_of(service) not in (0, hears_nothing_more), within_s=30)
    assert until(lambda: service.fetch().stdout.startswith("hello") and service.connections()[1:], within_s=30)
    assert {one["action"] for one in service.connections()} == {"bypass"}
    assert len(service.mitmsec.of_kind("policy")) == 1


def gate_of(service: Service) -> int:
    """Its pid; 0 while there is none that serves."""
    return next((pid for role, pid, _ in status_of(service.mitmsec).processes if role == "gate"), 0)


@service_backends
def test_a_killed_supervisor_leaves_the_network_as_the_policy_says(service: Service) -> None:
    """Open first, then closed: each start takes over what is left."""
    for number, on_failure in enumerate(("open", "closed")):
        service.start(on_failure=on_failure)
        assert service.fetch().stdout.startswith("hello")
        assert len(service.settled(number + 1)) == number + 1
        os.kill(status_of(service.mitmsec).supervisor, signal.SIGKILL)
        time.sleep(1.2)
        assert service.fetch("/usr/bin/curl").stdout.startswith("hello")  # nobody else notices
        mine = service.fetch()  # it starts when nobody watches any more; the kernel knows its file
        assert mine.stdout.startswith("hello") if on_failure == "open" else mine.returncode == 7, mine
    service.start()
    assert service.fetch().stdout.startswith("hello")
    assert len(service.settled(3)) == 3
    pins = service.mitmsec.state / "run" / "bpf"
    assert not pins.exists() or not [one for one in pins.iterdir() if one.is_dir()]


def test_a_second_service_is_refused_and_without_one_orders_are(service: Service) -> None:
    service.start()
    again = service.call("start", "--policy", service.policy(), check=False)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    service.call("stop")
    for order in ("stop", "off", "on"):
        assert service.call(order, check=False).returncode == 1


def test_in_the_foreground_it_ends_with_its_terminal(service: Service) -> None:
    """And reads its policy again when it is told to, as its supervisor does; one that is wrong changes nothing."""
    policy = Path(service.policy())
    command = service.mitmsec.command(
        "start", "--state", str(service.mitmsec.state), "--foreground", "--policy", str(policy)
    )
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=service.mitmsec.environment())
    assert running.stderr is not None
    assert "at work" in running.stderr.readline()
    running.stderr.readline()
    good = policy.read_text()
    policy.write_text(good.replace("bypass", "teleport"))
    running.send_signal(signal.SIGHUP)
    assert "teleport" in running.stderr.readline()
    supervisor = status_of(service.mitmsec).supervisor
    os.kill(supervisor, signal.SIGHUP)
    (fault,) = until(lambda: service.mitmsec.of_kind("fault"), within_s=30)
    assert (fault["what"], "teleport" in fault["detail"]) == ("reload_failed", True)
    assert len(service.mitmsec.of_kind("policy")) == 1
    policy.write_text(good.replace("bypass", "block"))
    os.kill(supervisor, signal.SIGHUP)
    assert until(lambda: len(service.mitmsec.of_kind("policy")) == 2, within_s=30)
    assert service.fetch().returncode == 35
    policy.write_text(good)
    running.send_signal(signal.SIGHUP)
    assert until(lambda: len(service.mitmsec.of_kind("policy")) == 3, within_s=30)
    assert service.fetch().stdout.startswith("hello")
    first, second, third = (one["policy"] for one in service.mitmsec.of_kind("policy"))
    assert (first == third, first == second) == (True, False)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 0
    assert "stopping (SIGTERM)" in err
    assert [event["operation"] for event in service.mitmsec.of_kind("service")] == [
        "service_started",
        "service_stopped",
    ]


def test_help_says_what_each_order_does() -> None:
    for order in ("start", "stop", "reload", "status", "on", "off"):
        said = CliRunner().invoke(cli, [order, "--help"], prog_name="mitmsec", catch_exceptions=False)
        assert said.exit_code == 0
        assert "Usage: mitmsec" in said.stdout
