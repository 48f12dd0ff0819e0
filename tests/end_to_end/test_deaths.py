"""Any of our processes is killed, at any time: within a second the network is open or closed as the policy says."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mitmsec, Network, all_backends, here, status_of

from mitmsec.service import control

pytestmark = pytest.mark.root

# A client that tries once for each host and path on its input and prints what came of it: whose certificate it saw, or
# the error.
CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context()
print("up", flush=True)
for line in sys.stdin:
    host, path = line.split()
    try:
        with socket.create_connection(("203.0.113.10", 443), 5) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                head = f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n"
                secure.sendall(head.encode())
                secure.recv(99)
                print(dict(x[0] for x in secure.getpeercert()["issuer"])["commonName"], flush=True)
    except OSError as error:
        print(type(error).__name__, error, flush=True)
"""


class Client:
    """A program under `mitmsec run` that connects when it is told to."""

    def __init__(self, run: subprocess.Popen[str], mitmsec: Mitmsec) -> None:
        self.run, self._mitmsec = run, mitmsec
        assert self.said() == "up"

    def said(self) -> str:
        assert self.run.stdout is not None
        return self.run.stdout.readline().strip()

    def tries(self, host: str = "origin.test", path: str = "/hello") -> str:
        self.begins(host, path)
        return self.said()

    def begins(self, host: str = "origin.test", path: str = "/hello") -> None:
        assert self.run.stdin is not None
        self.run.stdin.write(f"{host} {path}\n")
        self.run.stdin.flush()

    def status(self) -> control.StatusAnswer:
        return status_of(self._mitmsec)

    def pid_of(self, role: str) -> int:
        if role == "supervisor":
            return self.status().supervisor
        return next(pid for name, pid, _ in self.status().processes if name == role)

    def end(self) -> tuple[str, str]:
        out, err = self.run.communicate(timeout=60)
        return out, err


@contextlib.contextmanager
def client(
    mitmsec: Mitmsec, on_failure: str, *, workers: int = 1, rules: str = "", capture: Path | None = None
) -> Iterator[Client]:
    policy = mitmsec.policy(f'[defaults]\non_failure = "{on_failure}"\n{rules}')
    options = ("--workers", str(workers), "--policy", policy, *(("--capture", str(capture)) if capture else ()))
    run = mitmsec.start(*options, "--", sys.executable, "-c", CLIENT, stdin=subprocess.PIPE)
    try:
        yield Client(run, mitmsec)
    finally:
        run.kill()
        run.communicate()


def until(client: Client, wanted: str, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while wanted not in (said := client.tries()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def until_replaced(client: Client, role: str, victim: int, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while victim in (pids := [pid for name, pid, _ in client.status().processes if name == role]) or not pids:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_recorded(mitmsec: Mitmsec, requests: int, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while len(mitmsec.of_kind("request")) < requests:
        assert time.monotonic() < deadline
        time.sleep(0.05)


OURS, ITS_OWN = "mitmsec issuing", "Test Origins nginx"
DENIED = {  # by whom, and how that looks
    "connect_hook": "PermissionError",
    "nftables": "ConnectionRefusedError",
    "windivert": "ConnectionRefusedError",
}
LEFT = {"connect_hook": "hook", "nftables": "table", "windivert": "diverter"}  # behind, by a killed supervisor


ROLES = {"connect_hook": ("gate", "worker", "signer", "recorder"), "nftables": ("gate", "recorder"),
         "windivert": ("gate", "diverter")}  # fmt: skip


@all_backends
@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_a_killed_process_is_replaced_and_nothing_slips_through(
    origin: Network, mitmsec: Mitmsec, on_failure: str
) -> None:
    """One role after another, in one run: to start one for each takes most of the time."""
    roles = ROLES[mitmsec.backend]
    with client(mitmsec, on_failure, workers=2 if "worker" in roles else 1) as program:
        for number, role in enumerate(roles):
            assert OURS in program.tries(), role
            until_recorded(mitmsec, 2 * number + 1)
            victim = program.pid_of(role)
            os.kill(victim, signal.SIGKILL)
            said = [program.tries() for _ in range(5)]
            until_replaced(program, role, victim)
            if on_failure == "closed":
                assert not any(ITS_OWN in word for word in said), (role, said)
            until(program, OURS)
        program.end()
    faults = [event["what"] for event in mitmsec.of_kind("fault")]
    assert {f"{role}_died" for role in roles} <= set(faults)
    requests = mitmsec.of_kind("request")
    assert len(requests) >= 2 * len(roles)
    assert_verified(mitmsec)


@all_backends
@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_a_killed_supervisor_leaves_the_network_as_the_policy_says(
    origin: Network, mitmsec: Mitmsec, on_failure: str
) -> None:
    wanted = ITS_OWN if on_failure == "open" else DENIED[mitmsec.backend]
    with client(mitmsec, on_failure) as program:
        assert OURS in program.tries()
        stay = ("diverter",) if on_failure == "closed" else ()  # it is what denies
        children = [pid for role, pid, _ in program.status().processes if role not in stay]
        os.kill(program.pid_of("supervisor"), signal.SIGKILL)
        killed = time.monotonic()
        until(program, wanted, within_s=5)
        assert time.monotonic() - killed < 2.0  # a second, and the machine's own slowness
        for pid in children:
            until_gone(pid)
        if on_failure == "closed":
            time.sleep(1.2)
            assert wanted in program.tries()
        _, err = program.end()
        assert "the supervisor ended before the run did" in err
        went = {"open": "let through, unrecorded", "closed": "denied until the command ended"}[on_failure]
        assert f"connections from then on were {went}\n" in err
    done = mitmsec.run("--", "true")  # the next start reaps what the dead one left
    assert done.returncode == 0, done.stderr
    cgroups = [path for path in Path("/sys/fs/cgroup").rglob("mitmsec-*") if (mitmsec_identity(mitmsec) in path.name)]
    assert cgroups == []
    assert tables(mitmsec) == []
    assert len(mitmsec.of_kind("request")) >= 1
    assert_verified(mitmsec)


@all_backends
def test_a_hanging_gate_is_treated_like_a_dead_one_and_replaced_if_it_goes_on(
    origin: Network, mitmsec: Mitmsec
) -> None:
    with client(mitmsec, "open") as program:
        assert OURS in program.tries()
        gate = program.pid_of("gate")
        os.kill(gate, signal.SIGSTOP)
        time.sleep(1.4)
        assert ITS_OWN in program.tries()
        os.kill(gate, signal.SIGCONT)
        until(program, OURS)
        assert program.pid_of("gate") == gate
        until_fault(mitmsec, "gate_stalled")
        os.kill(gate, signal.SIGSTOP)
        until_replaced(program, "gate", gate)
        until(program, OURS)
        program.end()
    faults = [event["what"] for event in mitmsec.of_kind("fault")]
    assert faults.count("gate_hangs") == faults.count("gate_died") == 1


@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_a_signer_or_recorder_that_hangs_is_ended_and_replaced(
    origin: Network, mitmsec: Mitmsec, on_failure: str
) -> None:
    with client(mitmsec, on_failure) as program:
        for number, role in enumerate(("signer", "recorder")):
            assert OURS in program.tries(), role
            until_recorded(mitmsec, 2 * number + 1)
            stuck = program.pid_of(role)
            os.kill(stuck, signal.SIGSTOP)
            stopped, said = time.monotonic(), []
            while Path(f"/proc/{stuck}").exists():
                assert time.monotonic() - stopped < 12, role
                said.append(program.tries())
            until_replaced(program, role, stuck)
            if on_failure == "closed":
                assert not any(ITS_OWN in word for word in said), (role, said)
            until(program, OURS)
        program.end()
    faults = [(event["what"], event.get("failed")) for event in mitmsec.of_kind("fault")]
    for role in ("signer", "recorder"):
        assert {(f"{role}_hangs", on_failure), (f"{role}_died", on_failure)} <= set(faults)
    assert_verified(mitmsec)


def test_a_killed_front_end_changes_nothing_for_the_command(origin: Network, mitmsec: Mitmsec) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(1.5); os.system('curl -sS -m 5 https://origin.test/hello')"
    run = mitmsec.start("--", sys.executable, "-c", script)
    assert run.stdout is not None
    int(run.stdout.readline())
    run.kill()
    assert "hello over" in run.communicate(timeout=30)[0]
    lock = mitmsec.state / "run" / "supervisor.lock"
    deadline = time.monotonic() + 20
    while subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [request["status"] for request in mitmsec.of_kind("request")] == [200]


@all_backends
def test_clean_removes_what_a_dead_supervisor_left(origin: Network, mitmsec: Mitmsec) -> None:
    with client(mitmsec, "closed") as program:
        os.kill(program.pid_of("supervisor"), signal.SIGKILL)
        until(program, DENIED[mitmsec.backend], within_s=5)
        time.sleep(1.2)  # the gate is dead at once, the last heartbeat counts for a second
        assert DENIED[mitmsec.backend] in program.tries()
        done = subprocess.run(
            mitmsec.command("clean", "--state", str(mitmsec.state), "--json"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert {json.loads(line).get("what") for line in done.stdout.splitlines()} >= {LEFT[mitmsec.backend], "cgroup"}
        until(program, ITS_OWN, within_s=5)


def until_gone(pid: int, within_s: float = 10) -> None:
    """Ended, or waiting for a parent that has other things to do."""
    deadline = time.monotonic() + within_s
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, Path(f"/proc/{pid}/cmdline").read_bytes()
        time.sleep(0.02)


def tables(mitmsec: Mitmsec) -> list[str]:
    """Of nftables, of this state, in its network."""
    if mitmsec.backend != "nftables":
        return []
    listed = subprocess.run(mitmsec.network.inside("nft", "list", "tables"), capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if mitmsec_identity(mitmsec) in line]


def mitmsec_identity(mitmsec: Mitmsec) -> str:
    return (mitmsec.state / "run" / "identity").read_text().strip()


def assert_verified(mitmsec: Mitmsec) -> None:
    here("audit", "verify", "--state", str(mitmsec.state))


@all_backends
def test_a_supervisor_that_is_told_to_end_keeps_a_closed_command_closed(origin: Network, mitmsec: Mitmsec) -> None:
    """SIGTERM, as at a reboot, is no way to open the network of a command that lives."""
    with client(mitmsec, "closed") as program:
        assert OURS in program.tries()
        supervisor = program.pid_of("supervisor")
        os.kill(supervisor, signal.SIGTERM)
        until_gone(supervisor, within_s=40)
        said = [program.tries() for _ in range(5)]
        time.sleep(1.1)
        said.append(program.tries())
        assert not any(ITS_OWN in word for word in said), said
        assert DENIED[mitmsec.backend] in said[-1]
        program.end()


def test_a_signer_that_cannot_be_replaced_is_tried_again_until_it_can(origin: Network, mitmsec: Mitmsec) -> None:
    key = mitmsec.state / "ca" / "issuing.key"
    with client(mitmsec, "closed") as program:
        assert OURS in program.tries()
        kept = key.read_bytes()
        key.write_bytes(b"no key")
        os.kill(program.pid_of("signer"), signal.SIGKILL)
        until_fault(mitmsec, "signer_not_replaced")
        assert OURS not in program.tries()
        key.write_bytes(kept)
        until(program, OURS)
        program.end()
    assert "signer_died" in [event["what"] for event in mitmsec.of_kind("fault")]
    assert_verified(mitmsec)


def until_fault(mitmsec: Mitmsec, what: str, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while what not in (seen := [event["what"] for event in mitmsec.of_kind("fault")]):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)


def test_a_child_that_is_stopped_does_not_outlive_its_supervisor(origin: Network, mitmsec: Mitmsec) -> None:
    with client(mitmsec, "open") as program:
        assert OURS in program.tries()
        children = [pid for _, pid, _ in program.status().processes]
        for role in ("worker", "gate", "signer"):
            os.kill(program.pid_of(role), signal.SIGSTOP)
        os.kill(program.pid_of("supervisor"), signal.SIGKILL)
        for pid in children:
            until_gone(pid)
        program.end()


def test_a_closed_run_that_ends_in_order_leaves_no_mount(origin: Network, mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy('[defaults]\non_failure = "closed"\n')
    done = mitmsec.run("--policy", policy, "--", "true")
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 20
    while str(mitmsec.state) in Path("/proc/mounts").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_three_deaths_at_once_are_mended(origin: Network, mitmsec: Mitmsec) -> None:
    with client(mitmsec, "open") as program:
        assert OURS in program.tries()
        victims = {role: program.pid_of(role) for role in ("recorder", "signer", "gate")}
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        for role, pid in victims.items():
            until_replaced(program, role, pid, within_s=40)
        until(program, OURS, within_s=40)
        roles = sorted(role for role, _, _ in program.status().processes)
        assert roles == ["gate", "recorder", "signer", "worker"]
        program.end()
    assert_verified(mitmsec)


def test_a_flood_of_missed_connections_is_few_events(origin: Network, mitmsec: Mitmsec) -> None:
    """QUIC to one place a thousand times: some events, and their counts add up."""
    script = (
        "import socket\n"
        "for _ in range(1000):\n"
        "    s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "    try: s.connect(('203.0.113.10', 443))\n"
        "    except OSError: pass\n"
        "    s.close()\n"
    )
    assert mitmsec.run("--", sys.executable, "-c", script).returncode == 0
    refused = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "quic"]
    assert 1 <= len(refused) <= 100
    counts = [int(found[1]) for event in refused if (found := re.search(r"\((\d+) attempts\)", event["reason"]))]
    lost = sum(event["count"] for event in mitmsec.of_kind("fault") if event["what"] == "quic_refused")
    assert sum(counts) + (len(refused) - len(counts)) + lost == 1000


def test_a_worker_that_hangs_is_ended_and_replaced(origin: Network, mitmsec: Mitmsec) -> None:
    """The gate says that it takes nothing; a stopped process stands in for one that is busy for ever."""
    with client(mitmsec, "open") as program:
        assert OURS in program.tries()
        stuck = program.pid_of("worker")
        os.kill(stuck, signal.SIGSTOP)
        deadline = time.monotonic() + 40
        while stuck in (pid for _, pid, _ in program.status().processes):
            assert time.monotonic() < deadline
            program.tries()
        until(program, OURS)
        program.end()
    assert {"worker_hangs", "worker_died"} <= {event["what"] for event in mitmsec.of_kind("fault")}


def test_a_worker_that_ends_by_itself_while_its_run_lives_is_a_death_too(origin: Network, mitmsec: Mitmsec) -> None:
    with client(mitmsec, "closed") as program:
        assert OURS in program.tries()
        victim = program.pid_of("worker")
        hang_up_on(victim)
        until_replaced(program, "worker", victim)
        until(program, OURS)
        program.end()
    details = [event["detail"] for event in mitmsec.of_kind("fault") if event["what"] == "worker_died"]
    assert [detail.rpartition(", ")[2] for detail in details] == ["status 0"]


def hang_up_on(pid: int) -> None:
    """End the channel of a child to its supervisor, whose descriptor is its argument: it leaves in order."""
    pidfd_getfd = 438  # the same number everywhere
    number = int(Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").rpartition(b"\0")[2])
    pidfd = os.pidfd_open(pid)
    fd = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, pidfd, number, 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=fd) as channel:
        channel.shutdown(socket.SHUT_RDWR)
    os.close(pidfd)
