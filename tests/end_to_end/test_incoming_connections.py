"""Connections that come in for selected programs are seen, recorded, and put down to who accepts them; no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAR_PEER_V4, FAR_V4, Mitmsec, Network
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

pytestmark = [pytest.mark.root, pytest.mark.joined, pytest.mark.unread]
__all__ = ["outside", "serve"]  # fixtures


CALLED = ((OURS_V4, OURS_V4, PEER_V4), (OURS_V6, OURS_V6, PEER_V6), ("::", OURS_V4, PEER_V4), ("::", OURS_V6, PEER_V6))
"""Where somebody listens, where he is called, and by whom."""


@pytest.mark.parametrize("mitmsec", ["connect_hook", "windivert"], indirect=True)
def test_a_connection_from_another_machine_is_recorded_with_who_accepted_it_whichever_backend_diverts_what_goes_out(
    mitmsec: Mitmsec, network: Network, serve: Callable[..., Served], outside: list[str]
) -> None:
    near = mitmsec.network is network
    called, caller = (CALLED, outside) if near else (((FAR_V4, FAR_V4, FAR_PEER_V4),), network.inside())
    served = serve(",".join(dict.fromkeys(listens for listens, _, _ in called)))
    for listens, at, _ in called:
        assert fetch(caller, at, served.at[listens][1]) == ANSWER
    events = until(mitmsec, len(called))
    ends = [(one["local"], one["remote"]["address"], one["process"]["pid"]) for one in events]
    servers = [(at, peer, *served.at[listens]) for listens, at, peer in called]
    expected = [({"address": at, "port": int(port)}, peer, pid) for at, peer, pid, port in servers]
    assert sorted(ends, key=str) == sorted(expected, key=str)
    for event in events:
        assert event["process"]["exe"] == os.path.realpath(sys.executable)
        assert event["process"]["confidence"] == "kernel"
        assert (event["action"], event["rule"], event["outcome"]) == ("bypass", "defaults", "completed")
        assert event["bytes"]["sent"] > len(ANSWER)
        assert event["bytes"]["received"] > len("GET / HTTP/1.1")


def test_each_worker_of_a_server_has_its_own_connections(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str]
) -> None:
    """They inherit the listener: who called listen() has none of the connections of others."""
    served = serve(OURS_V4, processes=3)
    for _ in range(12):
        assert fetch(outside, OURS_V4, served.port) == ANSWER
    events = until(mitmsec, 12)
    assert {event["process"]["confidence"] for event in events} == {"kernel"}
    assert {event["process"]["pid"] for event in events} <= served.pids
    exe = os.path.realpath(sys.executable)
    assert {event["process"]["exe"] for event in events} == {exe}


def test_nginx_that_was_started_as_a_daemon_is_known(
    mitmsec: Mitmsec, network: Network, outside: list[str], tmp_path: Path
) -> None:
    """The process that listens forks and ends at once; a worker of another user accepts."""
    tmp_path.chmod(0o755)
    conf = nginx_conf(tmp_path, OURS_V4, 8099)
    run = mitmsec.start("--wait", "--", "nginx", "-c", str(conf), stdout=subprocess.DEVNULL)
    try:
        until_listens(network, 8099)
        assert fetch(outside, OURS_V4, "8099") == ANSWER
        (event,) = until(mitmsec, 1)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        run.communicate(timeout=30)
    process = event["process"]
    assert (process["name"], process["confidence"]) == ("nginx", "kernel")
    assert process["user"] != "root"
    assert process["parent"]["exe"] == process["exe"]


def test_a_connection_within_one_command_is_told_from_both_sides(mitmsec: Mitmsec, outside: list[str]) -> None:
    """The server's peer is the gate, which has dialled for the client."""
    policy = mitmsec.policy('[defaults]\naction = "bypass"\n')
    call_itself(mitmsec, policy)
    told = {event["direction"]: event for event in mitmsec.of_kind("connection")}
    assert set(told) == {"inbound", "outbound"}
    out, inward = told["outbound"], told["inbound"]
    assert out["remote"]["port"] == inward["local"]["port"]
    assert out["process"]["pid"] != inward["process"]["pid"]
    assert out["bytes"] == inward["bytes"] == {"sent": 8, "received": 8}
    assert inward["remote"] != out["local"]


def test_who_is_outside_of_the_run_is_not_told(mitmsec: Mitmsec, network: Network, outside: list[str]) -> None:
    with network.start(sys.executable, "-c", SERVER, OURS_V4, "1", stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[0]
        run = mitmsec.start("--", "sleep", "3")
        time.sleep(1.5)
        assert fetch(outside, OURS_V4, port) == ANSWER
        run.communicate(timeout=30)
        server.kill()
    assert mitmsec.of_kind("connection") == []


def test_a_rule_for_incoming_connections_stands_in_the_record_and_one_that_outlives_the_run_is_on_record(
    mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str]
) -> None:
    rule = f'[[rule]]\nname = "peers"\ndirection = "inbound"\naddress = ["{PEER_V4}"]\naction = "bypass"\n'
    served = serve(OURS_V4, "--policy", mitmsec.policy(f'[defaults]\naction = "bypass"\n{rule}'))
    fetch(outside, OURS_V4, served.port)
    (event,) = until(mitmsec, 1)
    assert event["rule"] == "peers"
    assert event["reason"] == f'rule "peers" takes incoming connections from {PEER_V4}/32'
    code = "import socket, sys, time; s = socket.create_connection(sys.argv[1:]); print(flush=True); time.sleep(60)"
    peer = [*outside, sys.executable, "-I", "-S", "-c", code, OURS_V4, served.port]
    with subprocess.Popen(peer, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        served.end()
        client.kill()
    told = [event for event in mitmsec.events("--kind", "connection") if event["direction"] == "inbound"][1:]
    assert [event["local"]["port"] for event in told] == [int(served.port)]
    assert told[0]["outcome"] in ("open", "completed")


@pytest.mark.joined(False)
def test_apps_shows_what_came_in(mitmsec: Mitmsec, serve: Callable[..., Served], outside: list[str]) -> None:
    served = serve(OURS_V4)
    fetch(outside, OURS_V4, served.port)
    until(mitmsec, 1)
    shown = subprocess.run(mitmsec.command("apps", "--state", str(mitmsec.state)), capture_output=True, text=True)
    assert f"←  from {PEER_V4} on port {served.port}" in shown.stdout, shown.stderr
