"""`doctor` names each need, and for what is missing what to do about it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from mitmsec.cli import cli
from mitmsec_redirect import probe
from mitmsec_redirect.probe import Check

FOUND = [Check(name="privilege", ok=True, detail="root"), Check(name="bpf", ok=False, detail="EPERM", remedy="do this")]


def test_what_is_missing_comes_with_its_remedy_and_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "checks", lambda: FOUND)
    shown = CliRunner().invoke(cli, ["doctor"])
    assert shown.exit_code == 3
    assert "do this" in shown.output
    as_json = CliRunner().invoke(cli, ["doctor", "--json"])
    assert as_json.stdout.startswith('{"name":"privilege","ok":true,')
    assert [json.loads(line)["name"] for line in as_json.stdout.splitlines()] == ["privilege", "bpf"]


def test_where_all_works_the_status_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "checks", lambda: FOUND[:1])
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0


def doctor(monkeypatch: pytest.MonkeyPatch, *found: Check) -> list[str]:
    monkeypatch.setattr(probe, "checks", lambda: list(found))
    return CliRunner().invoke(cli, ["doctor"]).stdout.splitlines()


def test_without_root_the_one_cause_is_told_once_and_the_last_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = doctor(
        monkeypatch,
        Check(name="privilege", ok=False, detail="this is user 7, not root", remedy="Run it as root."),
        Check(name="bpf", ok=False, detail="not permitted", remedy="Run as root, with CAP_BPF."),
        Check(name="cgroup2", ok=False, detail="no cgroup", remedy="Run as root where cgroup2 is mounted."),
        Check(name="loopback", ok=True, detail="lo is up"),
    )
    assert [line.split()[:2] for line in lines[:4]] == [
        ["missing", "privilege"], ["unknown", "bpf"], ["unknown", "cgroup2"], ["works", "loopback"],
    ]  # fmt: skip
    assert len(lines) == 6
    assert sum("Run as root" in line for line in lines) == 0
    assert lines[-1].startswith("mitmsec run needs root. Look again with: sudo ")


def test_the_same_reason_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"ok": False, "detail": "no cgroup", "remedy": "mount cgroup2"}
    lines = doctor(monkeypatch, FOUND[0], Check(name="cgroup2", **same), Check(name="connect hook", **same))  # type: ignore[arg-type]
    assert sum("no cgroup" in line for line in lines) == 1
    assert any("connect hook" in line and "for the same reason as cgroup2" in line for line in lines)
    assert lines[-1] == "mitmsec run cannot work here. First: mount cgroup2"


def test_where_all_works_the_last_line_says_what_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor(monkeypatch, FOUND[0])[-1].endswith("run -- CMD")


def test_lines_end_where_their_words_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line for line in doctor(monkeypatch, *FOUND) if line != line.rstrip()] == []


def test_as_json_what_only_root_can_find_out_is_neither_so_nor_not_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check(name="privilege", ok=False, detail="user 7"), Check(name="bpf", ok=False, detail="not permitted")]
    monkeypatch.setattr(probe, "checks", lambda: [*found, Check(name="loopback", ok=True, detail="up")])
    told = [json.loads(line) for line in CliRunner().invoke(cli, ["doctor", "--json"]).stdout.splitlines()]
    assert [check["ok"] for check in told] == [False, None, True]
    monkeypatch.setattr(probe, "checks", lambda: found[1:])
    assert json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["ok"] is False


NO_BPF = Check(name="bpf", ok=False, detail="EPERM", remedy="do this", backend="connect_hook")
NO_NFT = Check(name="nftables", ok=False, detail="no nft", remedy="install nft", backend="nftables")
RULES_TAKEN = Check(name="backend", ok=True, detail="nftables is taken", backend="nftables")
HOOK_TAKEN = Check(name="backend", ok=True, detail="connect_hook is taken", backend="connect_hook")
NONE_TAKEN = Check(name="backend", ok=False, detail="neither works")


@pytest.mark.parametrize(("lacking", "taken"), [(NO_BPF, RULES_TAKEN), (NO_NFT, HOOK_TAKEN)], ids=["bpf", "nft"])
def test_what_the_backend_that_is_taken_does_not_need_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, lacking: Check, taken: Check
) -> None:
    lines = doctor(monkeypatch, FOUND[0], lacking, taken)
    assert f"{lacking.detail}; not needed here" in lines[1]
    assert not any(lacking.remedy in line for line in lines)
    assert lines[-1].startswith(f"mitmsec run works, by {taken.backend}. Next: ")
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0


def test_where_no_backend_works_all_that_is_missing_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = doctor(monkeypatch, FOUND[0], NO_BPF, NO_NFT, NONE_TAKEN)
    assert sum("not needed" in line for line in lines) == 0
    assert lines[-1] == "mitmsec run cannot work here, for 2 reasons. First: do this"
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 3


def test_what_every_backend_needs_is_missed_whichever_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = doctor(monkeypatch, FOUND[1], HOOK_TAKEN)
    assert lines[-1] == "mitmsec run cannot work here. First: do this"


def test_what_a_run_can_do_without_is_told_and_no_reason_for_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    less = Check("callers", ok=False, detail="less is told", remedy="unlock", backend="connect_hook", optional=True)
    lines = doctor(monkeypatch, FOUND[0], less, HOOK_TAKEN)
    assert lines[1].split()[:4] == ["less", "callers", "less", "is"]
    assert lines[2].strip() == "unlock"
    assert lines[-1].startswith("mitmsec run works, by connect_hook. Next: ")
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0
    assert "not needed here" in doctor(monkeypatch, FOUND[0], NO_BPF, less, RULES_TAKEN)[2]
    assert doctor(monkeypatch, NO_BPF, less, NONE_TAKEN)[-1] == "mitmsec run cannot work here. First: do this"
