"""The line at the end of a run is for people: on a terminal it says what happened, in a pipe it is not there."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from conftest import Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]

POLICY = """
[[rule]]
name = "private"
host = ["bank.test"]
action = "bypass"
"""
CURL = "curl -sSo /dev/null https://origin.test/hello && curl -sSo /dev/null https://bank.test/hello"


def on_a_terminal(mitmsec: Mitmsec, *arguments: str) -> tuple[int, str, str]:
    """Status, what stdout (a pipe) got, what the terminal that is stderr got."""
    ours, theirs = pty.openpty()
    try:
        done = mitmsec.run(*arguments, capture_output=False, stdout=subprocess.PIPE, stderr=theirs)
        os.set_blocking(ours, False)
        return done.returncode, done.stdout, os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_the_last_line_counts_what_happened_and_says_how_to_see_it(
    origin: Network, mitmsec: Mitmsec
) -> None:
    policy = mitmsec.policy(POLICY)
    status, out, err = on_a_terminal(mitmsec, "--policy", policy, "--", "sh", "-c", f"{CURL}; echo out; exit 5")
    assert (status, out) == (5, "out\n")
    last = err.splitlines()[-1]
    assert last.startswith("mitmsec: 2 connections: 1 decrypted, 1 bypassed; no findings; see ")
    session = last.partition("--session ")[2].split()[0]
    seen = mitmsec.events("--session", session)
    assert seen == [event for event in mitmsec.events() if event["kind"] != "ca"]  # the CA is of no run
    assert [event["action"] for event in mitmsec.events("--session", session, "--rule", "private")] == ["bypass"]


def test_what_failed_does_not_look_like_success(origin: Network, mitmsec: Mitmsec) -> None:
    """An origin whose certificate is not valid, a program that does not take ours, an origin that refuses."""
    script = "curl -sS --cacert /dev/null https://origin.test/hello; curl -sS https://tracker.test/; true"
    refuses = mitmsec.run("--summary", "--", "sh", "-c", script).stderr.splitlines()[-1]
    assert "decrypted" not in refuses
    assert "1 decrypt: the program did not accept our certificate" in refuses
    assert "2 failed (1 decrypt: the origin refused; " in refuses
    environment = mitmsec.environment() | {"SSL_CERT_FILE": str(origin.folder / "bank.test.pem")}
    mirrored = mitmsec.run("--summary", "--", "curl", "-sS", "https://origin.test/hello", env=environment)
    assert mirrored.returncode == 60
    last = mirrored.stderr.splitlines()[-1]
    assert last.startswith(
        "mitmsec: 1 connection: 1 failed (decrypt: the origin's certificate is not valid); no findings;"
    )


@pytest.mark.unread
def test_in_a_pipe_there_is_no_such_line_unless_it_is_asked_for(origin: Network, mitmsec: Mitmsec) -> None:
    silent = mitmsec.run("--", "true")
    assert "connection" not in silent.stderr
    asked = mitmsec.run("--summary", "--", "true")
    assert asked.stderr.endswith("mitmsec: no connection was seen\n")
    assert "connection" not in on_a_terminal(mitmsec, "--no-summary", "--", "true")[2]
