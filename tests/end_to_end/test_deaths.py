"""Any of our processes is killed, at any time: within a second the network is open or closed as the policy says."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from client_stage import Client, client
from conftest import Mitmsec, Network, all_backends, here

pytestmark = pytest.mark.root


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


AT_ONCE = ("recorder", "signer", "gate")
KILLED = {  # one after another, in one run: to start one for each takes most of the time
    ("connect_hook", "closed"): [("gate",), ("worker",), ("signer",), ("recorder",)],
    ("connect_hook", "open"): [("worker",), AT_ONCE],
    ("nftables", "closed"): [("gate",), ("recorder",)],
    ("nftables", "open"): [("gate",), ("recorder",)],
    ("windivert", "closed"): [("gate",), ("diverter",)],
    ("windivert", "open"): [("gate",), ("diverter",)],
}


@all_backends
@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_whoever_is_killed_is_replaced_and_without_a_supervisor_the_network_is_as_the_policy_says(
    origin: Network, mitmsec: Mitmsec, on_failure: str
) -> None:
    killed = KILLED[mitmsec.backend, on_failure]
    with client(mitmsec, on_failure, workers=2 if ("worker",) in killed else 1) as program:
        for number, roles in enumerate(killed):
            assert OURS in program.tries(), roles
            until_recorded(mitmsec, 2 * number + 1)
            are_killed_and_replaced(program, roles, on_failure)
        if on_failure == "open":
            hanging_gate_counts_as_dead(program, mitmsec)
        wanted = ITS_OWN if on_failure == "open" else DENIED[mitmsec.backend]
        kill_supervisor(program, mitmsec, wanted)
        if on_failure == "closed":
            time.sleep(1.2)
            assert wanted in program.tries()
            cleaned(mitmsec)
            until(program, ITS_OWN, within_s=5)
        _, err = program.end()
    assert "the supervisor ended before the run did" in err
    went = {"open": "let through, unrecorded", "closed": "denied until the command ended"}[on_failure]
    assert f"connections from then on were {went}\n" in err
    faults = [event["what"] for event in mitmsec.of_kind("fault")]
    assert {f"{roles[0]}_died" for roles in killed} <= set(faults)  # of a signer, with its recorder, nobody could tell
    assert len(mitmsec.of_kind("request")) >= 2 * len(killed)
    if on_failure == "open":
        next_start_reaps(mitmsec)
    assert_verified(mitmsec)


def are_killed_and_replaced(program: Client, roles: tuple[str, ...], on_failure: str) -> None:
    victims = {role: program.pid_of(role) for role in roles}
    for pid in victims.values():
        os.kill(pid, signal.SIGKILL)
    said = [program.tries() for _ in range(5)]
    for role, pid in victims.items():
        until_replaced(program, role, pid, within_s=40)
    if on_failure == "closed":
        assert not any(ITS_OWN in word for word in said), (roles, said)
    until(program, OURS, within_s=40)
    assert {role for role, _, _ in program.status().processes} >= {"gate", "recorder", "signer", "worker"}


def until_settled(program: Client) -> None:
    """After many deaths at once what was begun before the last of them was known is begun anew once more."""
    before: object = None
    while (now := program.status().processes) != before:
        before = now
        time.sleep(1.0)


def hanging_gate_counts_as_dead(program: Client, mitmsec: Mitmsec) -> None:
    """And it is replaced if it goes on hanging."""
    until_settled(program)
    gate = program.pid_of("gate")
    os.kill(gate, signal.SIGSTOP)
    time.sleep(1.4)
    assert ITS_OWN in program.tries()
    os.kill(gate, signal.SIGCONT)
    until(program, OURS)
    assert program.pid_of("gate") == gate
    until_fault(mitmsec, "gate_stalled")
    died = [event["what"] for event in mitmsec.of_kind("fault")].count("gate_died")
    os.kill(gate, signal.SIGSTOP)
    until_replaced(program, "gate", gate)
    until(program, OURS)
    until_fault(mitmsec, "gate_hangs")
    faults = [event["what"] for event in mitmsec.of_kind("fault")]
    assert faults.count("gate_hangs") == faults.count("gate_died") - died == 1


def kill_supervisor(program: Client, mitmsec: Mitmsec, wanted: str) -> None:
    """What it leaves is at once as it should be; its children end, also one that is stopped."""
    assert OURS in program.tries()
    stay = () if wanted == ITS_OWN else ("diverter",)  # it is what denies
    children = [pid for role, pid, _ in program.status().processes if role not in stay]
    if mitmsec.backend == "connect_hook":
        for role in ("worker", "gate", "signer"):
            os.kill(program.pid_of(role), signal.SIGSTOP)
    os.kill(program.pid_of("supervisor"), signal.SIGKILL)
    killed = time.monotonic()
    until(program, wanted, within_s=5)
    assert time.monotonic() - killed < 2.0  # a second, and the machine's own slowness
    for pid in children:
        until_gone(pid)


def cleaned(mitmsec: Mitmsec) -> None:
    """`clean` removes what a dead supervisor has left."""
    command = mitmsec.command("clean", "--state", str(mitmsec.state), "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {json.loads(line).get("what") for line in done.stdout.splitlines()} >= {LEFT[mitmsec.backend], "cgroup"}


def next_start_reaps(mitmsec: Mitmsec) -> None:
    """What the one before has left."""
    done = mitmsec.run("--policy", mitmsec.policy('[defaults]\naction = "bypass"\n'), "--", "true")
    assert done.returncode == 0, done.stderr
    cgroups = [path for path in Path("/sys/fs/cgroup").rglob("mitmsec-*") if (mitmsec_identity(mitmsec) in path.name)]
    assert cgroups == []
    assert tables(mitmsec) == []


HUNG = {"open": ("worker", "recorder"), "closed": ("signer", "recorder")}
NOTICED_S = {"worker": 40, "signer": 12, "recorder": 12}


@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_whoever_hangs_is_ended_and_replaced(origin: Network, mitmsec: Mitmsec, on_failure: str) -> None:
    """A stopped process stands in for one that is busy for ever."""
    with client(mitmsec, on_failure) as program:
        for number, role in enumerate(HUNG[on_failure]):
            assert OURS in program.tries(), role
            until_recorded(mitmsec, 2 * number + 1)
            stuck = program.pid_of(role)
            os.kill(stuck, signal.SIGSTOP)
            said = tries_until_gone(program, stuck, NOTICED_S[role])
            until_replaced(program, role, stuck)
            if on_failure == "closed":
                assert not any(ITS_OWN in word for word in said), (role, said)
            until(program, OURS)
        if on_failure == "closed":
            worker_leaves_by_itself(program, mitmsec)
        program.end()
    faults = [(event["what"], event.get("failed")) for event in mitmsec.of_kind("fault")]
    for role in HUNG[on_failure]:
        failed = None if role == "worker" else on_failure  # of a worker that is its flows' own business
        assert {(f"{role}_hangs", failed), (f"{role}_died", failed)} <= set(faults)
    assert_verified(mitmsec)


def tries_until_gone(program: Client, stuck: int, within_s: float) -> list[str]:
    """What the program meets until then."""
    stopped, said = time.monotonic(), []
    while Path(f"/proc/{stuck}").exists():
        assert time.monotonic() - stopped < within_s
        said.append(program.tries())
        time.sleep(0.05)
    return said


def worker_leaves_by_itself(program: Client, mitmsec: Mitmsec) -> None:
    """While its run lives that is a death too."""
    victim = program.pid_of("worker")
    hang_up_on(victim)
    until_replaced(program, "worker", victim)
    until(program, OURS)
    details = [event["detail"] for event in mitmsec.of_kind("fault") if event["what"] == "worker_died"]
    assert details[-1].rpartition(", ")[2] == "status 0"


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
    next_start_reaps(mitmsec)


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


def test_a_closed_run_that_ends_in_order_leaves_no_mount(origin: Network, mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy('[defaults]\non_failure = "closed"\n')
    done = mitmsec.run("--policy", policy, "--", "true")
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 20
    while str(mitmsec.state) in Path("/proc/mounts").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.joined
@pytest.mark.unread
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
