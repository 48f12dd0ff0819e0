"""What keeps a run from starting is told as what it is: the machine's, with what to do next, and no fault of ours."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Mitmsec, Network, status_of

from mitmsec.audit.store import FILE_NAME
from mitmsec.service.state import State

pytestmark = [pytest.mark.root, pytest.mark.unread]


def test_what_a_state_has_of_earlier_runs_is_told_or_refused_at_the_next_start(
    network: Network, mitmsec: Mitmsec
) -> None:
    """Each of these begins where a run has ended well, as the one before it does."""
    a_run_whose_supervisor_was_killed_is_told_of_at_the_next_start(mitmsec)
    a_log_that_is_none_or_was_changed_or_emptied_is_not_appended_to(mitmsec)
    a_ca_that_is_refused_can_be_dropped_without_the_log(mitmsec)


def a_run_whose_supervisor_was_killed_is_told_of_at_the_next_start(mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy('[defaults]\naction = "bypass"\non_failure = "closed"\n')
    run = mitmsec.start("--policy", policy, "--", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    os.kill(status_of(mitmsec).supervisor, signal.SIGKILL)
    run.communicate("\n", timeout=60)
    session = next(event["session"] for event in mitmsec.of_kind("service"))
    for _ in range(2):
        assert mitmsec.run("--", "true").returncode == 0
    (fault,) = [event for event in mitmsec.of_kind("fault") if event["what"] == "session_unrecorded"]
    assert (fault["session"], fault["failed"]) == (session, "closed")
    assert "/sh: its supervisor ended before it did" in fault["detail"]
    assert not list(State(mitmsec.state).run.glob("*.open"))


def a_log_that_is_none_or_was_changed_or_emptied_is_not_appended_to(mitmsec: Mitmsec) -> None:
    log, seen = mitmsec.state / "log" / FILE_NAME, len(mitmsec.events())
    good = log.read_bytes()
    with closing(sqlite3.connect(log, isolation_level=None)) as conn:
        conn.execute("UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level = 0")
    changed = log.read_bytes()
    for content, why in (
        (changed, "is not what the tree over it ends with"),
        (b"garbage" * 999, "file is not a database"),
        (b"", "is empty, but events have been recorded in it"),
    ):
        log.write_bytes(content)
        done = mitmsec.run("--", "true")
        assert done.returncode == 3
        if content == changed:  # it can be read, so it can be counted
            assert len(mitmsec.events()) == seen
        else:
            assert log.read_bytes() == content
        assert "mitmsec: the audit log is broken: " in done.stderr
        assert why in done.stderr
        assert f"audit verify --state {mitmsec.state}` says what is wrong" in done.stderr
    log.write_bytes(good)
    assert mitmsec.run("--", "true").returncode == 0


def a_ca_that_is_refused_can_be_dropped_without_the_log(mitmsec: Mitmsec) -> None:
    (mitmsec.state / "ca" / "issuing.key").chmod(0o644)
    done = mitmsec.run("--", "true")
    assert done.returncode == 3
    assert "mitmsec: the CA cannot be used: " in done.stderr
    assert f"clean --purge-ca --state {mitmsec.state}" in done.stderr
    cleaned = subprocess.run(mitmsec.command("clean", "--purge-ca", "--state", str(mitmsec.state)), capture_output=True)
    assert cleaned.returncode == 0
    assert mitmsec.run("--", "true").returncode == 0
    assert [event["operation"] for event in mitmsec.of_kind("ca")] == ["created", "removed", "created"]


def test_a_full_disk_is_named(network: Network, mitmsec: Mitmsec) -> None:
    mitmsec.state.mkdir()
    disk = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=711", "none", str(mitmsec.state)]
    subprocess.run(network.inside(*disk), check=True)
    try:
        assert mitmsec.run("--", "true").returncode == 0
        seen = Path(f"/proc/{network.holder}/root{mitmsec.state}")
        (seen / "run" / "ballast").write_bytes(bytes(os.statvfs(seen).f_bsize * os.statvfs(seen).f_bfree))
        done = mitmsec.run("--", "true")
        assert done.returncode == 3, done.stderr
        assert "mitmsec: the disk is full: " in done.stderr
        assert f"make room on the disk of {mitmsec.state}" in done.stderr
    finally:
        subprocess.run(network.inside("umount", "--lazy", str(mitmsec.state)), check=True)


@pytest.mark.parametrize("capability", ["setuid", "chown", "sys_admin"])
def test_root_that_lacks_a_capability_is_told_which(network: Network, mitmsec: Mitmsec, capability: str) -> None:
    arguments = mitmsec.command("run", "--state", str(mitmsec.state), "--", "true")
    fewer = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    at = arguments.index("-m") - 1  # of the interpreter: nsenter needs them all
    done = subprocess.run([*arguments[:at], *fewer, *arguments[at:]], capture_output=True, text=True)
    assert done.returncode == 3
    assert f"capabilities: not held: CAP_{capability.upper()}" in done.stderr
