"""Whose fault it is that nothing started, and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec.service import refusals
from mitmsec.service.state import DEFAULT, State
from mitmsec_redirect import probe
from mitmsec_redirect.probe import Check

ELSEWHERE = State(Path("/srv/state"))


@pytest.mark.parametrize(
    ("said", "error", "remedy"),
    [
        (
            "log_damaged: event 7 does not follow",
            "the audit log is broken: event 7 does not follow",
            "audit verify --state /srv/state` says what is wrong; keep a copy of /srv/state/log",
        ),
        ("log_unwritable: x: attempt to write", "the audit log cannot be written: x: attempt", "put that right"),
        (
            "log_unwritable: x: database or disk is full",
            "the disk is full: x: database or disk is full",
            "make room on the disk of /srv/state",
        ),
        (
            "ca_refused: /srv: other owner",
            "the CA cannot be used: /srv: other owner",
            "clean --purge-ca --state /srv/state",
        ),
        (
            "ca_refused: [Errno 28] No space left on device",
            "the disk is full: [Errno 28] No space left on device",
            "make room",
        ),
        (
            "[Errno 28] No space left on device: 'x'",
            "the disk is full: [Errno 28] No space left on device: 'x'",
            "make room",
        ),
    ],
)
def test_what_the_machine_lacks_is_status_3_with_a_remedy_that_can_be_copied(
    said: str, error: str, remedy: str
) -> None:
    told = refusals.of_start(said, ELSEWHERE)
    assert told.error.startswith(error)
    assert remedy in told.remedy
    assert told.status == 3


def test_the_usual_state_needs_no_option() -> None:
    assert "--state" not in refusals.of_start("ca_refused: x", State(DEFAULT)).remedy


def test_what_doctor_finds_missing_is_the_machines_and_the_rest_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Check(name="kernel", ok=True, detail="Linux 6")
    elsewhere = Check(name="pid namespace", ok=False, detail="another one")
    monkeypatch.setattr(probe, "checks", lambda: [fine, elsewhere])
    assert refusals.of_start("the gate ended", ELSEWHERE).status == 125
    assert refusals.of_machine("no", "a remedy", 2) == ("no", "a remedy", 2)
    lacks = Check(name="capabilities", ok=False, detail="not held: CAP_SETUID", remedy="hold it")
    monkeypatch.setattr(probe, "checks", lambda: [fine, elsewhere, lacks])
    told = refusals.of_start("the gate ended", ELSEWHERE)
    assert told == ("the gate ended; capabilities: not held: CAP_SETUID", "hold it", 3)


def test_whatever_was_said_a_disk_without_room_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite may call it an I/O error."""
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    told = refusals.of_start("log_unwritable: audit.db: disk I/O error", ELSEWHERE)
    assert (told.error, told.status) == ("the disk is full: audit.db: disk I/O error", 3)
    assert "make room" in told.remedy
