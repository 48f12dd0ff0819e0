"""Every command answers --help, and a fault of ours is one line unless --debug asks for more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mitmsec import __version__
from mitmsec.cli import COMMANDS, cli


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_for_itself_and_for_each_option(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(cli, ["start-the-party"]).exit_code == 2


def test_the_version_is_told() -> None:
    done = subprocess.run([sys.executable, "-m", "mitmsec", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(__version__)


@pytest.mark.parametrize(("option", "traced"), [([], False), (["--debug"], True)])
def test_a_fault_of_ours_is_one_line_unless_debug(tmp_path: Path, option: list[str], traced: bool) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "audit.db").mkdir()  # a folder where a file should be
    command = [sys.executable, "-m", "mitmsec", "audit", "list", "--state", str(tmp_path), *option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ("Traceback" in done.stderr) <= traced
    assert done.stderr.startswith("mitmsec: ") or traced


def test_shell_completion_names_the_commands() -> None:
    environment = {
        "_MITMSEC_COMPLETE": "bash_complete",
        "COMP_WORDS": "mitmsec po",
        "COMP_CWORD": "1",
        "PATH": "/usr/bin",
    }
    program = str(Path(sys.executable).parent / "mitmsec")
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert "policy" in done.stdout


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("polcy", "there is no command 'polcy'; did you mean 'policy'?"),
        ("docter", "did you mean 'doctor'?"),
        ("xyzzy", "there are audit, clean, demo, doctor, policy, run"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_near_one(word: str, says: str) -> None:
    shown = CliRunner().invoke(cli, [word])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert says in shown.stderr


def test_a_misspelt_command_of_a_group_is_answered_too() -> None:
    shown = CliRunner().invoke(cli, ["audit", "lst"])
    assert shown.exit_code == 2
    assert "'list'" in shown.stderr


@pytest.mark.parametrize("group", [[], ["audit"], ["policy"]], ids=lambda group: " ".join(group) or "mitmsec")
def test_no_summary_of_a_command_is_cut_at_80_columns(group: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80)
    listed = shown.stdout.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed
    assert max(map(len, shown.stdout.splitlines())) <= 80
