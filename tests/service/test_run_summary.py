"""The line at the end of a run: true, one line, and never in the way."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import pytest
from audit_events import connection, log_of, request

from mitmsec.audit.event import FaultSeen, Outcome
from mitmsec.core.model import Action
from mitmsec.service.run import Report
from mitmsec.service.run_summary import DONE, capture_doubt, is_wanted, summary, tell_summary, tell_survivors
from mitmsec.service.state import DEFAULT, State

GOOD = (Outcome.COMPLETED, Outcome.OPEN)
REPORT = Report(
    session="run-1",
    command=("curl",),
    status=0,
    status_of="command",
    started="2026-11-03T10:00:00Z",
    duration_s=1.0,
    connections=3,
    findings=1,
)


def changed(**fields: object) -> Report:
    return Report(**({name: getattr(REPORT, name) for name in REPORT.__struct_fields__} | fields))


@pytest.mark.parametrize(
    ("report", "counts", "line"),
    [
        (
            REPORT,
            {("bypass", "unseen"): 2, ("bypass", "completed"): 1},
            "3 connections: 1 bypassed, 2 UDP unseen; 1 finding; see mitmsec audit list --session run-1",
        ),
        (
            REPORT,
            {("decrypt", "completed"): 1, ("block", "blocked"): 2},
            "3 connections: 1 decrypted, 2 blocked; 1 finding; see mitmsec audit list --session run-1",
        ),
        (changed(connections=1, findings=0), {}, "1 connection; no findings; see mitmsec audit list --session run-1"),
        (changed(connections=0, faults=2), {}, "no connections; 1 finding, 2 faults; see mitmsec audit list"),
        (changed(connections=0, findings=0), {}, "no connection was seen"),
        (changed(connections=2), {("bypass", "completed"): 1}, "1 connection: 1 bypassed; 1 finding; see "),
        (
            changed(connections=1, findings=0),
            {("decrypt", "origin_certificate"): 1},
            "1 connection: 1 failed (decrypt: the origin's certificate is not valid); no findings; see ",
        ),
        (
            changed(connections=9, findings=0),
            {
                ("decrypt", "completed"): 1,
                ("decrypt", "client_rejected"): 2,
                ("decrypt", "blocked"): 1,
                ("bypass", "origin_refused"): 1,
                ("capture", "open"): 1,
                ("decrypt", "client_closed"): 1,
                ("bypass", "cut"): 1,
                ("forward", "completed"): 1,
            },
            (
                "9 connections: 1 decrypted, 1 captured, 1 stopped by a finding, 1 left by the program, 1 cut, "
                "4 failed (1 bypass: the origin refused; 2 decrypt: the program did not accept our certificate; "
                "1 forward: completed); no findings; see "
            ),
        ),
    ],
)
def test_the_line_says_what_became_of_the_connections_and_how_to_see_them(
    monkeypatch: pytest.MonkeyPatch, report: Report, counts: dict[tuple[str, str], int], line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["gone"])
    assert summary(report, counts, State(DEFAULT)).startswith(f"mitmsec: {line}")
    assert "\n" not in summary(report, counts, State(DEFAULT))


@pytest.mark.parametrize("outcome", [end for end in Outcome if end not in GOOD])
@pytest.mark.parametrize("action", Action)
def test_no_outcome_but_the_good_ones_looks_like_success(action: Action, outcome: Outcome) -> None:
    line = summary(REPORT, {(action.value, outcome.value): 3}, State(DEFAULT))
    if (action, outcome) != (Action.BLOCK, Outcome.BLOCKED):
        assert f"3 {DONE[action]}" not in line
    assert "3 connections: 3 " in line


def test_children_that_live_on_are_told_of_even_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    tell_survivors(changed(survivors=1))
    tell_survivors(changed(survivors=2))
    tell_survivors(changed(survivors=0))
    assert capsys.readouterr().err.splitlines() == [
        "mitmsec: 1 process lives on, no longer diverted; --wait stays with them",
        "mitmsec: 2 processes live on, no longer diverted; --wait stays with them",
    ]


def test_another_state_directory_is_named_so_that_the_command_can_be_copied() -> None:
    assert summary(REPORT, {}, State(Path("/a b"))).endswith("--session run-1 --state '/a b'")


def test_the_counts_are_what_the_log_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [connection("a"), connection("b", action=Action.BYPASS), connection("c")])
    tell_summary(REPORT, State(tmp_path))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mitmsec: 3 connections: 2 decrypted, 1 bypassed; 1 finding; see ")


def test_without_a_log_the_line_is_shorter_and_after_an_error_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_summary(REPORT, State(tmp_path))
    assert capsys.readouterr().err.startswith("mitmsec: 3 connections; 1 finding; see ")
    tell_summary(changed(error="the supervisor ended", connections=None), State(tmp_path))
    assert capsys.readouterr().err == ""


def test_what_was_only_relayed_does_not_look_as_if_it_had_been_kept() -> None:
    counts = {("capture", "completed"): 2, ("decrypt", "completed"): 1}
    assert ": 1 decrypted, 2 captured;" in summary(REPORT, counts, State(DEFAULT))
    told = summary(REPORT, counts, State(DEFAULT), keeps=False)
    assert ": 1 decrypted, 2 relayed unread (kept only with --capture);" in told


def test_requests_that_a_finding_stopped_are_told_beside_their_connections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").mkdir()
    stopped = msgspec.structs.replace(request("a"), status=403, outcome=Outcome.BLOCKED, answered_by="mitmsec")
    log_of(tmp_path / "log", [request("a"), stopped, connection("a")])
    tell_summary(REPORT, State(tmp_path))
    assert "mitmsec: 1 connection: 1 decrypted; 1 finding, 1 request stopped; see " in capsys.readouterr().err


def test_what_a_capture_lacks_is_told_from_the_log(tmp_path: Path) -> None:
    def doubt(*faults: FaultSeen) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (folder / "log").mkdir(parents=True)
        log_of(folder / "log", faults)
        return capture_doubt(REPORT, State(folder))

    assert doubt(FaultSeen(what="stranger")) == ""
    assert capture_doubt(REPORT, State(tmp_path / "no log")) == ""
    left_out, lost = FaultSeen(what="capture_incomplete"), FaultSeen(what="capture_lost", count=3)
    assert doubt(left_out, lost, lost) == "the capture file is not complete: it lacks 1 connection and 6 pieces"
    failed = FaultSeen(what="capture_failed", detail="no space")
    assert doubt(lost, failed) == "the capture ended before the run did: no space"


def test_a_terminal_that_is_gone_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for nobody in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", nobody)
        tell_summary(REPORT, State(tmp_path))
        tell_survivors(changed(survivors=2))


def test_it_is_for_terminals_or_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_wanted(None)
    assert not is_wanted(False)
    for nobody in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", nobody)
        assert not is_wanted(None)
        assert is_wanted(True)
