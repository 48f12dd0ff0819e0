"""Connections that come in are blocked before the program sees any of them, or carried by the gate, unseen by both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mitmsec, Network, status_of
from incoming_stage import (
    ANSWER,
    OURS_V4,
    OURS_V6,
    PEER_V4,
    PEER_V6,
    SERVER,
    Served,
    call_itself,
    fetch,
    nginx_conf,
    outside,
    serve,
    until,
    until_listens,
)

pytestmark = [pytest.mark.root, pytest.mark.joined]
__all__ = ["outside", "serve"]  # fixtures
BLOCKED = """
[defaults]
action = "bypass"
inbound = "block"
on_failure = "{on_failure}"
"""
CARRIED = '[defaults]\naction = "bypass"\ninbound = "capture"\n'


def refused(where: list[str], address: str, port: str) -> bool:
    """The peer gets no answer, and soon."""
    with pytest.raises(subprocess.CalledProcessError) as failure:
        fetch(where, address, port)
    return failure.value.returncode in (7, 52, 56)  # curl: no connection, empty reply, reset


def blocked(mitmsec: Mitmsec, on_failure: str = "open", rules: str = "") -> tuple[str, str]:
    return "--policy", mitmsec.policy(BLOCKED.format(on_failure=on_failure) + rules)


def test_what_is_blocked_never_reaches_the_program(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str]
) -> None:
    served = serve(f"{OURS_V4},::", *blocked(mitmsec))
    called = ((OURS_V4, OURS_V4, PEER_V4), ("::", OURS_V4, PEER_V4), ("::", OURS_V6, PEER_V6))
    for listens, at, _ in called:
        assert refused(outside, at, served.at[listens][1])
    events = until(mitmsec, len(called))
    places = [(event["local"], event["remote"]["address"]) for event in events]
    expected = [({"address": at, "port": int(served.at[listens][1])}, peer) for listens, at, peer in called]
    assert sorted(places, key=str) == sorted(expected, key=str)
    for event in events:
        assert (event["action"], event["rule"], event["outcome"]) == ("block", "defaults", "blocked")
        assert event["process"]["exe"] == os.path.realpath(sys.executable)
        assert event["process"]["confidence"] == "inferred", "who listens is known, not who would have accepted"
    assert served.end() == [], "the program has served nobody"


def test_a_rule_lets_one_peer_in_and_no_other(
    mitmsec: Mitmsec, network: Network, serve: Callable[..., Served], outside: list[str]
) -> None:
    rule = f'[[rule]]\nname = "partner"\ndirection = "inbound"\naddress = ["{PEER_V4}"]\naction = "bypass"\n'
    served = serve("0.0.0.0", *blocked(mitmsec, rules=rule))
    assert fetch(outside, OURS_V4, served.port) == ANSWER
    assert refused(network.inside(), OURS_V4, served.port)
    passed, other = until(mitmsec, 2)
    assert (passed["rule"], passed["action"], passed["outcome"]) == ("partner", "bypass", "completed")
    assert (other["rule"], other["action"], other["remote"]["address"]) == ("defaults", "block", OURS_V4)
    assert passed["bytes"]["sent"] > len(ANSWER)
    assert passed["bytes"]["received"] > len("GET / HTTP/1.1")


def test_the_program_sees_its_true_peer_and_what_is_captured_is_kept_until_its_listener_closes(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str], tmp_path: Path
) -> None:
    """Who has closed refuses as ever."""
    capture = tmp_path / "in.pcapng"
    served = serve(f"{OURS_V4},{OURS_V6},::", "--policy", mitmsec.policy(CARRIED), "--capture", str(capture))
    called = (
        (OURS_V4, OURS_V4, PEER_V4),
        (OURS_V6, OURS_V6, PEER_V6),
        ("::", OURS_V4, f"::ffff:{PEER_V4}"),
        ("::", OURS_V6, PEER_V6),
    )
    for listens, at, _ in called:
        assert fetch(outside, at, served.at[listens][1]) == ANSWER
    events = until(mitmsec, len(called))
    assert {(event["action"], event["outcome"], event["protocol"]) for event in events} == {
        ("capture", "completed", "http")
    }
    peers = sorted(peer.removeprefix("::ffff:") for _, _, peer in called)
    assert sorted(event["remote"]["address"] for event in events) == peers
    heres = [(peer, f"::ffff:{at}" if peer.startswith("::ffff:") else at) for _, at, peer in called]
    assert sorted(served.end()) == sorted(f"{peer} {peer} {here}" for peer, here in heres)
    assert refused(outside, OURS_V4, served.port)
    kept = capture.read_bytes()
    assert kept.count(b"GET / HTTP/1.1") == kept.count(ANSWER) == len(called)


def test_a_command_that_calls_itself_is_decided_on_both_ways(mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy('[defaults]\naction = "bypass"\ninbound = "capture"\n')
    call_itself(mitmsec, policy)
    told = {event["direction"]: event["action"] for event in mitmsec.of_kind("connection")}
    assert told == {"inbound": "capture", "outbound": "bypass"}


def test_another_programs_listener_on_the_same_port_is_left_alone(
    mitmsec: Mitmsec, network: Network, serve: Callable[..., Served], outside: list[str]
) -> None:
    """It listens on one address, ours on all: the kernel would give it its connections, and so they go there."""
    served = serve("0.0.0.0", *blocked(mitmsec))
    code = SERVER.replace("(sys.argv[1], 0)", f"(sys.argv[1], {served.port})")
    with network.start(sys.executable, "-c", code, OURS_V4, "1", stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().split()[0] == served.port
        assert fetch(outside, OURS_V4, served.port) == ANSWER
        assert refused(network.inside(), "127.0.0.1", served.port)
        other.kill()
    assert [event["local"]["address"] for event in until(mitmsec, 1)] == ["127.0.0.1"]


def pid_of(mitmsec: Mitmsec, role: str) -> int:
    status = status_of(mitmsec)
    if role == "supervisor":
        return status.supervisor
    return next(pid for name, pid, _ in status.processes if name == role)


@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_while_the_gate_hangs_they_go_as_the_policy_says_of_failures(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str], on_failure: str
) -> None:
    served = serve(OURS_V4, *blocked(mitmsec, on_failure))
    gate = pid_of(mitmsec, "gate")
    os.kill(gate, signal.SIGSTOP)
    time.sleep(1.1)
    if on_failure == "open":
        assert fetch(outside, OURS_V4, served.port) == ANSWER
    else:
        assert refused(outside, OURS_V4, served.port)
    os.kill(gate, signal.SIGCONT)
    time.sleep(0.5)
    assert refused(outside, OURS_V4, served.port), "and the policy holds again"
    events = until(mitmsec, 2 if on_failure == "open" else 1)
    told = [(event["action"], event["rule"]) for event in events]
    assert told == ([("bypass", "on_failure")] if on_failure == "open" else []) + [("block", "defaults")]
    faults = [event for event in mitmsec.of_kind("fault") if event["what"] == "gate_stalled"]
    assert {fault["failed"] for fault in faults} == {on_failure}


@pytest.mark.parametrize("on_failure", ["open", "closed"])
@pytest.mark.joined(False)
def test_a_killed_supervisor_leaves_them_as_the_policy_says_of_failures(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str], on_failure: str
) -> None:
    served = serve(OURS_V4, *blocked(mitmsec, on_failure))
    assert refused(outside, OURS_V4, served.port)
    os.kill(pid_of(mitmsec, "supervisor"), signal.SIGKILL)
    time.sleep(2)
    if on_failure == "open":
        assert fetch(outside, OURS_V4, served.port) == ANSWER
    else:
        assert refused(outside, OURS_V4, served.port)
    served.end()
    clean = subprocess.run(mitmsec.command("clean", "--state", str(mitmsec.state)), capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr


def test_nftables_cannot_do_this_and_says_so(mitmsec: Mitmsec) -> None:
    done = mitmsec.run(*blocked(mitmsec), "--backend", "nftables", "--", "true")
    assert done.returncode == 3
    assert "only the connect hook leads them to the gate" in done.stderr


def test_a_daemon_is_decided_on_as_the_program_that_it_is(
    mitmsec: Mitmsec, network: Network, outside: list[str], tmp_path: Path
) -> None:
    """Who called listen() has ended long ago: it was read as it did so."""
    tmp_path.chmod(0o755)
    nginx = Path(shutil.which("nginx") or "").resolve()
    rules = (
        '[[rule]]\nname = "web"\ndirection = "inbound"\napplication = ["nginx"]\naction = "bypass"\n'
        f'[[application]]\nname = "nginx"\npath = ["{nginx}"]\n'
    )
    command = ["--", str(nginx), "-c", str(nginx_conf(tmp_path, OURS_V4, 8098))]
    run = mitmsec.start(*blocked(mitmsec, "closed", rules), "--wait", *command, stdout=subprocess.DEVNULL)
    try:
        until_listens(network, 8098)
        assert fetch(outside, OURS_V4, "8098") == ANSWER
        (event,) = until(mitmsec, 1)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        run.communicate(timeout=30)
    assert (event["rule"], event["action"], event["process"]["exe"]) == ("web", "bypass", str(nginx))
