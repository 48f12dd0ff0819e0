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
    assert [json.loads(line)["name"] for line in as_json.stdout.splitlines()] == ["privilege", "bpf"]


def test_where_all_works_the_status_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "checks", lambda: FOUND[:1])
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0
