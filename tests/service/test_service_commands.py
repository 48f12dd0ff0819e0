"""Orders on the command line: what is wrong is told before anything starts. What they do is in tests/end_to_end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mitmsec.cli import cli
from mitmsec.service import service_commands

pytestmark = pytest.mark.root
APPLICATION = '[[application]]\nname = "a"\npath = ["{}"]\n'


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(words))
    return result.exit_code, result.stderr


@pytest.mark.parametrize("order", ["stop", "on", "off"])
def test_without_a_service_the_next_step_is_told(tmp_path: Path, order: str) -> None:
    status, err = said(order, "--state", str(tmp_path / "state"))
    assert status == 1
    assert "no service runs on this state\n" in err
    assert "start --policy FILE" in err


def test_reload_reads_the_policy_first(tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text("version = 1\n" + APPLICATION.format("/usr/bin/curl"))
    assert said("reload", "--state", str(tmp_path / "state"), "--policy", str(policy))[0] == 1
    policy.write_text("version = 1\n[[rule]]\n")
    assert said("reload", "--state", str(tmp_path / "state"), "--policy", str(policy))[0] == 2


@pytest.mark.parametrize("order", ["start", "reload"])
def test_a_policy_that_selects_nobody_is_refused_with_nothing_started(tmp_path: Path, order: str) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text("version = 1\n")
    status, err = said(order, "--state", str(tmp_path / "state"), "--policy", str(policy))
    assert status == 2
    assert "names no [[application]], so the service would select no program" in err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("order", ["start", "reload"])
def test_an_application_that_nothing_matches_is_warned_about(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        service_commands, "_joined", lambda state, _policy: service_commands._connected(state)
    )  # without a service there is no more
    policy = tmp_path / "p.toml"
    policy.write_text("version = 1\n" + APPLICATION.format("/nowhere/at-all"))
    _, err = said(order, "--state", str(tmp_path / "state"), "--policy", str(policy))
    assert 'mitmsec: application "a" names no file that is there\n' in err
    policy.write_text('version = 1\n[[application]]\nname = "a"\npid = [4194303]\n')
    _, err = said(order, "--state", str(tmp_path / "state"), "--policy", str(policy))
    assert 'mitmsec: application "a" names no process that runs\n' in err
    policy.write_text("version = 1\n" + APPLICATION.format("/usr/bin/*"))
    assert "names no" not in said(order, "--state", str(tmp_path / "s"), "--policy", str(policy))[1]


def test_status_of_nothing_is_a_status(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--state", str(tmp_path / "state")])
    assert result.exit_code == 1
    assert result.stdout == "nothing of mitmsec is at work on this state\n"
    result = CliRunner().invoke(cli, ["status", "--json", "--state", str(tmp_path / "state")])
    assert result.stdout == '{"supervisor":null}\n'


@pytest.mark.parametrize("order", ["start", "reload"])
def test_a_link_to_the_policy_stays_a_link_for_whoever_reads_it_again(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered: list[Any] = []

    def answer(_channel: object, order: object, *_fds: int, **_: object) -> None:
        ordered.append(order)
        sys.exit(1)

    monkeypatch.setattr(service_commands, "_joined", lambda _state, _policy: None)
    monkeypatch.setattr(service_commands, "_connected", lambda _state: None)
    monkeypatch.setattr(service_commands, "_answer", answer)
    (tmp_path / "first.toml").write_text("version = 1\n" + APPLICATION.format("/usr/bin/*"))
    (tmp_path / "current.toml").symlink_to("first.toml")
    monkeypatch.chdir(tmp_path)
    assert said(order, "--state", str(tmp_path / "state"), "--policy", "current.toml")[0] == 1
    assert [one.policy_file for one in ordered] == [str(tmp_path / "current.toml")]
