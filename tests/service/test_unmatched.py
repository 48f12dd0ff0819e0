"""An application that names nothing on this machine is told of, and only where that is certain."""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from mitmsec.cli import cli
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application
from mitmsec.service import unmatched as module
from mitmsec.service.unmatched import unmatched


def said(**criteria: object) -> list[str]:
    return unmatched(Policy(applications=(msgspec.convert({"name": "a", **criteria}, Application),)))


def test_a_plain_path_is_a_file_or_is_told_of(tmp_path: Path) -> None:
    assert said(path=["/nowhere/curl"]) == ['application "a" names no file that is there']
    assert said(path=[str(tmp_path)]) == ['application "a" names no file that is there'], "a folder is no program"
    assert said(path=["/nowhere/curl", __file__]) == []


def test_a_glob_is_looked_for_below_its_first_wildcard(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/tool").touch()
    assert said(path=[f"{tmp_path}/d*/tool"]) == []
    assert said(path=[f"{tmp_path}/deep/*.exe"]) == ['application "a" names no file that is there']
    assert said(path=["/nowhere/*"]) == ['application "a" names no file that is there']


@pytest.mark.parametrize("anywhere", ["*", "/*", "*/curl"])
def test_a_glob_over_everything_is_not_looked_for(anywhere: str) -> None:
    assert said(path=[anywhere]) == []


def test_in_a_large_tree_nothing_is_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"file{number}").touch()
    glob = f"{tmp_path}/*.exe"
    assert said(path=[glob])
    monkeypatch.setattr(module, "FILES_LOOKED_AT", 4)
    assert said(path=[glob]) == []


def test_a_pid_that_nobody_has_is_told_of() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert said(pid=[child.pid, 4194303]) == ['application "a" names no process that runs']
    assert said(pid=[2**40]) == ['application "a" names no process that runs']
    assert said(pid=[child.pid, os.getpid()]) == []
    assert said(pid=[1]) == [], "not ours to signal, but there"


def test_somebody_elses_process_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert said(pid=[1]) == []


def test_a_user_whom_nobody_knows_is_told_of() -> None:
    assert said(user=["nobody-of-this-name"]) == ['application "a" names no user that is known here']
    assert said(user=["nobody-of-this-name", getpass.getuser()]) == []
    assert said(user=["61234"]) == []


def test_each_criterion_is_told_of_and_what_may_come_is_not() -> None:
    assert said(path=["/nowhere"], pid=[4194303], service=["later.service"], container=["docker:*"]) == [
        'application "a" names no file that is there',
        'application "a" names no process that runs',
    ]


def test_on_linux_nothing_has_a_signer_and_nothing_is_a_service_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(signer=["A Corporation"], service=["windows:Dnscache"]) == [
        'application "a" names a signer, and programs have none but on Windows',
        'application "a" names services of Windows only',
    ]
    assert said(service=["windows:Dnscache", "nginx.service"]) == []
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert said(signer=["A Corporation"], service=["windows:Dnscache"]) == []


def test_policy_check_says_so_and_is_content(tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text('version = 1\n[[application]]\nname = "old"\npath = ["/nowhere/curl"]\n')
    result = CliRunner().invoke(cli, ["policy", "check", str(policy)])
    assert result.exit_code == 0
    assert result.stderr == 'on this machine, application "old" names no file that is there\n'
    told = msgspec.json.decode(CliRunner().invoke(cli, ["policy", "check", "--json", str(policy)]).stdout)
    assert told["warnings"] == ['application "old" names no file that is there']
