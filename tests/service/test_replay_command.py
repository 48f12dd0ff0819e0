"""`mitmsec policy replay`: over the log and over captures, what would change, for people and for scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from audit_events import connection, log_of, request
from click.testing import CliRunner, Result
from msgspec.structs import replace
from test_captured_flows import PACKETS, capture

from mitmsec.audit.event import Outcome
from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import Policy, Rule
from mitmsec.service import policy_versions, replay_command, replay_sources
from mitmsec.service.policy_commands import policy
from mitmsec.service.policy_versions import PolicyVersions

BLOCKS_API = """version = 1
[[rule]]
name = "no api"
host = ["api.example.com"]
action = "block"
[[rule]]
name = "files"
application = ["*/curl"]
action = "decrypt"
"""
THEN = Policy(rules=(Rule(name="files", action=Action.DECRYPT, application=("*/curl",)),))
SEEN = replace(connection(), policy=THEN.fingerprint, rule="files", reason="")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("log", "policies"):
        (tmp_path / name).mkdir()
    PolicyVersions(tmp_path / "policies").keep(THEN)
    (tmp_path / "new.toml").write_text(BLOCKS_API)
    (tmp_path / "old.toml").write_text(
        'version = 1\n[[rule]]\nname = "files"\napplication = ["*/curl"]\naction = "decrypt"\n'
    )
    return tmp_path


def replay(state: Path, *words: object, columns: int = 300) -> Result:
    named = [str(state / word) if str(word).endswith(".toml") else str(word) for word in words]
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(policy, ["replay", *named, "--state", str(state)], catch_exceptions=False)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def recorded(state: Path, *more: Any) -> None:
    off = replace(SEEN, flow="flow-off", action=Action.BYPASS, reason="mitmsec is switched off; else decrypted")
    others = replace(SEEN, flow="flow-2", host="other.example", outcome=Outcome.OPEN)
    log_of(state / "log", [request(), SEEN, off, others, replace(others, outcome=Outcome.COMPLETED), *more])


def test_what_would_change_is_counted_by_what_was_and_what_will_be(state: Path) -> None:
    recorded(state)
    told = replay(state, "new.toml")
    assert told.exit_code == 0, told.output
    lines = [re.split(r" {2,}", line.strip()) for line in told.stdout.splitlines()]
    assert lines[0] == [f"{state}/new.toml over 3 flows: 2 change"]
    assert lines[3] == [
        "2", 'decrypt by "files"', 'block by "no api"', "/usr/bin/curl to api.example.com, port 443",
    ]  # fmt: skip
    assert told.stdout.index("as before") > told.stdout.index("no api")
    assert told.stderr == ""


def test_the_policy_that_decided_them_changes_nothing_though_the_kill_switch_did(state: Path) -> None:
    recorded(state)
    told = replay(state, "old.toml", "--expect-same")
    assert told.exit_code == 0, told.output
    assert "over 3 flows: 0 change" in told.stdout
    assert replay(state, "new.toml", "--expect-same").exit_code == 1


def test_for_scripts_each_change_is_an_object_and_then_the_sums(state: Path) -> None:
    recorded(state)
    first, second, summary = objects(replay(state, "new.toml", "--json"))
    assert (first["kind"], first["connection"], second["connection"]) == ("change", "flow-1", "flow-off")
    assert (first["from"]["rule"], first["to"]["action"], first["process"]["exe"]) == (
        "files", "block", "/usr/bin/curl",
    )  # fmt: skip
    assert first["remote"] == {"address": "192.0.2.7", "port": 443, "host": "api.example.com"}
    assert (summary["flows"], summary["changed"], summary["unsettled"]) == (3, 2, 0)
    assert [(one["from"]["rule"], one["to"]["rule"], one["count"]) for one in summary["counts"]] == [
        ("files", "no api", 2), ("files", "files", 1),
    ]  # fmt: skip


def test_options_choose_which_flows_of_the_log_are_meant(state: Path) -> None:
    recorded(state)
    for words, flows in (
        (("--host", "other.example"), 1),
        (("--app", "wget"), 0),
        (("--session", "run-1"), 3),
        (("--since", "2026-11-03T10:00:02Z"), 2),
        (("--until", "2026-11-03T10:00:02Z"), 1),
    ):
        assert objects(replay(state, "new.toml", "--json", *words))[-1]["flows"] == flows, words


def test_where_the_policy_of_that_time_is_not_kept_the_record_stands_for_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_sources, "VERSIONS_HELD", 1)
    unknown = replace(SEEN, flow="flow-3", policy="0" * 64, action=Action.BYPASS, rule="gone")
    recorded(state, unknown, replace(unknown, flow="flow-4", policy=""))
    told = replay(state, "old.toml")
    assert 'bypass by "gone"' in told.stdout
    assert "of 2 the policy of that time is not kept" in told.stderr


def test_events_that_tell_of_no_decision_are_left_out_and_counted(state: Path) -> None:
    recorded(state, replace(SEEN, flow="flow-x", outcome=Outcome.STRANGER))
    told = replay(state, "old.toml")
    assert "over 3 flows" in told.stdout
    assert "1 left out: nobody had diverted it" in told.stderr


def test_of_what_is_not_on_record_it_is_said_that_it_is_not_certain(state: Path) -> None:
    cut = replace(SEEN, flow="flow-5", protocol="tcp", tls=None, host=None, direction=Direction.INBOUND)
    (state / "in.toml").write_text(
        'version = 1\n[[rule]]\nname = "curl"\napplication = ["*/curl"]\naction = "block"\ndirection = "inbound"\n'
    )
    recorded(state, cut)
    assert objects(replay(state, "in.toml", "--json"))[-1]["unsettled"] == 0
    (state / "log" / "audit.db").unlink()
    log_of(state / "log", [replace(SEEN, process=replace(SEEN.process, name="x" * 50_000), host="y" * 20_000)])
    told = replay(state, "new.toml", "--expect-same")
    assert told.exit_code == 1
    assert "of 1 it is not certain: rules ask for what is not on record" in told.stderr
    (one, _) = objects(replay(state, "new.toml", "--json"))
    assert (one["kind"], one["unsettled"]) == (
        "unsettled", ['rule "no api" asks for host, which is not on record',
                      'rule "files" asks for application, which is not on record'],
    )  # fmt: skip


def test_of_very_many_rows_people_are_shown_the_most_frequent(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_command, "CHANGING_SHOWN", 1)
    recorded(state, *(replace(SEEN, flow=f"flow-{n}", rule=f"gone {n}", policy="") for n in range(3)))
    assert "and 3 more; --json has them all" in replay(state, "new.toml").stdout


def test_a_table_fits_the_terminal(state: Path) -> None:
    recorded(state)
    for columns in (60, 80, 120):
        told = replay(state, "new.toml", columns=columns).stdout
        assert max(map(len, told.splitlines()[1:])) <= columns
        assert {'"no', 'api"'} <= set(told.split())


def test_a_capture_is_replayed_with_what_was_made_of_its_flows(state: Path, tmp_path: Path) -> None:
    path = capture(tmp_path)
    (change, summary) = objects(replay(state, "old.toml", "--pcap", path, "--json"))
    assert (change["connection"], change["remote"]["host"]) == ("f1", "a.test")
    assert (change["from"]["rule"], change["to"]["rule"]) == ("defaults", "files")
    assert summary["counts"][0]["example"] == "/usr/bin/curl to a.test, port 443"
    path = capture(tmp_path, ended=False)
    assert "not known" in replay(state, "old.toml", "--pcap", path).stdout


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--pcap", PACKETS), 2, "editcap -F pcapng"),
        (("--pcap", "/nonexistent"), 2, "cannot be read: No such file"),
        (("--pcap", __file__), 2, "not pcapng from byte 0 on"),
        (("--pcap", PACKETS, "--since", "1h"), 2, "--since chooses from the log"),
        (("--program", "/usr/bin/curl"), 2, "--program is for flows of a capture"),
        ((), 1, "there is no log"),
    ],
)
def test_what_cannot_be_replayed_says_why(state: Path, words: tuple[object, ...], status: int, says: str) -> None:
    told = replay(state, "old.toml", *words)
    assert (told.exit_code, told.stdout) == (status, "")
    assert says in told.stderr


def test_who_may_not_read_the_kept_policies_is_told_who_may_replay(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    recorded(state)
    monkeypatch.setattr(policy_versions.gzip, "open", denied)
    told = replay(state, "new.toml")
    assert told.exit_code == 3
    assert "not for you to read" in told.stderr
