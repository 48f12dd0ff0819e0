"""What a run leaves behind for its caller: the report, the capture, the words on stderr. None of it claims too much."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]

HELLO = ("--", "curl", "-sS", "https://origin.test/hello")
BYPASS = '[defaults]\naction = "bypass"\n'
STOPPING = """
[defaults]
inspect = ["keywords"]
[inspector.keywords]
words = ["nightingale"]
[[rule]]
name = "nothing leaves"
action = "decrypt"
on_finding = "block"
"""


def test_a_request_that_a_finding_stopped_is_told_apart_from_one_that_its_origin_refused(
    origin: Network, mitmsec: Mitmsec
) -> None:
    """The client sees 403 in every case; the connection goes on."""
    policy = mitmsec.policy(STOPPING)
    curl = "curl -sS -o /dev/null -w '%{http_code} '"
    url = "https://origin.test/hello"
    script = (
        f"{curl} --http1.1 -d nightingale {url}; {curl} -d nightingale {url}; {curl} {url}?nightingale; {curl} {url}"
    )
    done = mitmsec.run("--summary", "--policy", policy, "--", "sh", "-c", script)
    assert done.stdout.split() == ["403", "403", "403", "200"]
    requests = mitmsec.of_kind("request")
    ours = {("blocked", "mitmsec")}
    assert {(one.get("outcome"), one.get("answered_by")) for one in requests if one["status"] == 403} == ours
    assert [(one.get("outcome"), one.get("answered_by")) for one in requests if one["status"] == 200] == [(None, None)]
    assert [one["kind"] for one in mitmsec.events("--outcome", "blocked")] == ["request"] * 3
    assert "mitmsec: 4 connections: 4 decrypted; 3 findings, 3 requests stopped; see " in done.stderr


def test_connections_are_found_by_their_address_too(origin: Network, mitmsec: Mitmsec) -> None:
    assert "captures" not in mitmsec.run(*HELLO).stderr, "which is said where the policy does"
    for wanted in ("203.0.113.10", "203.0.113.*", "origin.test"):
        assert [one["kind"] for one in mitmsec.events("--kind", "connection", "--host", wanted)] == ["connection"]
    assert mitmsec.events("--host", "203.0.113.1") == []


def test_a_capture_that_fails_is_told_in_a_pipe_and_in_the_report(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = mitmsec.run("--capture", "/dev/full", "--report", str(report), *HELLO)
    assert (done.returncode, done.stdout[:5]) == (0, "hello")
    assert "mitmsec: the capture ended before the run did: " in done.stderr
    assert "the capture ended before the run did: " in json.loads(report.read_text())["error"]


def test_capturing_without_a_file_to_capture_into_is_said(origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    policy = mitmsec.policy('[defaults]\naction = "capture"\n')
    environment = mitmsec.environment()
    without = mitmsec.run("--summary", "--policy", policy, *HELLO, env=environment)
    assert "mitmsec: the policy captures connections, but without --capture nothing of them is kept\n" in without.stderr
    assert "1 relayed unread (kept only with --capture)" in without.stderr
    kept = mitmsec.run("--summary", "--policy", policy, "--capture", str(tmp_path / "out.pcapng"), *HELLO)
    assert "without --capture" not in kept.stderr
    assert "mitmsec: 1 connection: 1 captured; " in kept.stderr


@pytest.mark.parametrize("by", ["name", "symbolic link", "hard link"])
def test_one_file_cannot_be_two_results(network: Network, mitmsec: Mitmsec, tmp_path: Path, by: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("earlier")
    if by == "name":
        two = tmp_path / ".." / tmp_path.name / "one"
    elif by == "symbolic link":
        two.symlink_to(one)
    else:
        two.hardlink_to(one)
    done = mitmsec.run("--capture", str(one), "--report", str(two), "--", "touch", str(tmp_path / "started"))
    assert done.returncode == 2
    assert f"--capture and --report are the same file: {two}" in done.stderr
    assert one.read_text() == "earlier"
    assert not (tmp_path / "started").exists()


def test_a_result_over_the_policy_or_over_a_file_to_come_is_refused_and_two_that_go_nowhere_are_not(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    policy = mitmsec.policy(BYPASS)
    assert mitmsec.run("--policy", policy, "--report", policy, "--", "true").returncode == 2
    assert Path(policy).read_text() == f"version = 1\n{BYPASS}"
    new = str(tmp_path / "new")
    assert mitmsec.run("--capture", new, "--report", new, "--", "true").returncode == 2
    assert (
        mitmsec.run("--capture", "/dev/null", "--report", "/dev/null", "--policy", policy, "--", "true").returncode == 0
    )


def test_two_runs_cannot_write_one_capture(origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    capture, report = tmp_path / "out.pcapng", tmp_path / "report.json"
    unread = ("--policy", mitmsec.policy(BYPASS))
    first = mitmsec.start(
        *unread, "--capture", str(capture), "--", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        second = mitmsec.run("--capture", str(capture), "--", "touch", str(tmp_path / "started"))
        assert second.returncode == 2
        assert f"another run (pid {first.pid}) is writing {capture}" in second.stderr
        assert not (tmp_path / "started").exists()
    finally:
        first.communicate("\n", timeout=30)
    assert first.returncode == 0
    kept = mitmsec.run("--capture", str(capture), "--report", str(report), *HELLO)
    assert kept.returncode == 0
    assert "capture" not in kept.stderr, "nothing failed"
    assert json.loads(report.read_text())["error"] == ""
    assert capture.stat().st_size > 1000


def test_a_wrong_policy_leaves_an_earlier_report_as_it_is(network: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for wrong in ("x = 1\n", "this is no TOML"):
        report.write_text("earlier")
        done = mitmsec.run("--policy", mitmsec.policy(wrong), "--report", str(report), "--", "true")
        assert (done.returncode, report.read_text()) == (2, "earlier")


def test_numbers_of_cards_accounts_and_persons_are_found_in_what_is_uploaded(origin: Network, mitmsec: Mitmsec) -> None:
    """And a card stops the upload. As somebody else than root, who reads the policy then."""
    rules = '[[rule]]\nname = "no cards"\nport = [443]\naction = "decrypt"\n'
    rules += 'inspect = ["payment_card"]\non_finding = "block"\n'
    policy = mitmsec.policy(f'[defaults]\ninspect = ["iban", "national_id"]\n{rules}')
    upload = ("-sS", "-o", "/dev/null", "-w", "%{http_code}\\n", "--data-binary")
    numbers = "to DE89 3704 0044 0532 0130 00, of 44051401359 (PESEL 44051401359)"
    uploads = (
        ("curl", *upload, numbers, "http://origin.test/hello"),
        ("curl", *upload, "visa 4539 1488 0343 6467", "https://origin.test/hello"),
    )
    script = "; ".join(map(shlex.join, uploads))
    done = mitmsec.run("--user", "nobody", "--policy", policy, "--", "sh", "-c", script)
    assert done.stdout.split() == ["200", "403"], done.stderr
    found = [(event["detector"], event["evidence"], event["verdict"]) for event in mitmsec.of_kind("finding")]
    assert found == [
        ("iban", "DE…3000 (22 characters)", "alert"),
        ("national_id", "…359 (11 characters)", "alert"),
        ("payment_card", "…6467 (16 digits)", "block"),
    ]
