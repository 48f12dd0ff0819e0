"""`mitmsec run --backend`: what diverts is chosen, told, and refused where it cannot be had."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from conftest import MITMSEC, V4, Mitmsec, Network, all_backends, by_nftables, status_of

from mitmsec.service import seccomp

pytestmark = [pytest.mark.root, pytest.mark.unread]
CURL = ("--", "curl", "-sS", "https://origin.test/hello")


def without_bpf() -> None:
    """As a kernel, or a container, in which bpf(2) is forbidden."""
    machine = platform.machine()
    steps = [*seccomp._opening(machine), *seccomp._denials([seccomp.WEIGHED[machine]["bpf"]])]
    seccomp._load_filter(b"".join([*steps, seccomp._return(seccomp.ALLOW)]))


def diverted_by(mitmsec: Mitmsec) -> list[str]:
    """What the log says of each run."""
    started = [event["detail"] for event in mitmsec.of_kind("service") if event["operation"] == "run_started"]
    return [detail.rpartition("diverted by ")[2] for detail in started]


@by_nftables
def test_where_ebpf_is_forbidden_a_run_takes_nftables_by_itself(origin: Network, mitmsec: Mitmsec) -> None:
    mitmsec.backend = ""
    done = mitmsec.run(*CURL, preexec_fn=without_bpf)
    assert (done.returncode, done.stdout) == (0, "hello over HTTP/2.0\n"), done.stderr
    assert diverted_by(mitmsec) == ["nftables"]
    assert "connect_hook cannot be used: " in (mitmsec.state / "run" / "supervisor.log").read_text()
    mitmsec.backend = "connect_hook"
    refused = mitmsec.run(*CURL, preexec_fn=without_bpf)
    assert refused.returncode == 3
    assert "nftables" not in refused.stderr


@by_nftables
def test_doctor_says_which_backend_a_run_takes(network: Network, mitmsec: Mitmsec) -> None:
    command = network.inside(*MITMSEC, "doctor")
    told = {
        taken: subprocess.run(command, capture_output=True, text=True, preexec_fn=forbid).stdout
        for taken, forbid in (("connect_hook", None), ("nftables", without_bpf))
    }
    for taken, text in told.items():
        assert f"{taken} is what `mitmsec run` takes" in text
    assert "not needed here" in told["nftables"]


def test_a_service_is_not_diverted_by_rules(network: Network, mitmsec: Mitmsec) -> None:
    command = mitmsec.command("start", "--state", str(mitmsec.state), "--backend", "nftables")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'nftables' is not one of 'auto', 'connect_hook', 'windivert'" in done.stderr


SEND = """
import socket, time
s = socket.socket(type=socket.SOCK_DGRAM)
s.settimeout(5)
try:
    s.connect(("{address}", 443)); s.send(b"\\xc0initial"); print(s.recv(99))
except (PermissionError, ConnectionRefusedError):
    print("refused")
time.sleep(1)  # it lives on, as a browser does
"""


@pytest.mark.joined
@all_backends
def test_status_and_log_say_what_diverts_a_run_and_quic_is_refused_and_recorded_as_the_programs(
    origin: Network, mitmsec: Mitmsec
) -> None:
    """Failures close here: of an open one the origin, too, says that nobody listens there."""
    closed = mitmsec.policy('[defaults]\naction = "bypass"\non_failure = "closed"\n')
    script = '"$0" -c "$1"; echo up; read x'
    command = ("sh", "-c", script, sys.executable, SEND.format(address=V4))
    run = mitmsec.start("--policy", closed, "--", *command, stdin=subprocess.PIPE)
    try:
        assert run.stdout is not None
        assert [run.stdout.readline(), run.stdout.readline()] == ["refused\n", "up\n"]
        assert [backend for _, backend in status_of(mitmsec).backends] == [mitmsec.backend]
        shown = subprocess.run(mitmsec.command("status", "--state", str(mitmsec.state)), capture_output=True, text=True)
        assert f"/sh by {mitmsec.backend}; " in shown.stdout
    finally:
        run.communicate("\n", timeout=60)
    assert diverted_by(mitmsec) == [mitmsec.backend]
    (connection,) = mitmsec.of_kind("connection")
    assert (connection["protocol"], connection["action"], connection["outcome"]) == ("quic", "block", "blocked")
    assert connection["remote"]["address"] == V4
    assert connection["process"]["exe"] == os.path.realpath(sys.executable)
    assert mitmsec.of_kind("fault") == []
