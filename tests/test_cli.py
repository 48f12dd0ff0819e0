"""Every command answers --help, and a fault of ours is one line unless --debug asks for more."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mitmsec import __version__
from mitmsec.cli import COMMANDS, cli, main
from mitmsec.service import doctor_command, policy_commands


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


def test_ctrl_c_is_no_answer_of_a_command_but_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_command, "_table", interrupted)
    monkeypatch.setattr(sys, "argv", ["mitmsec", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "mitmsec: interrupted\n"


def test_a_full_disk_is_the_machines_fault_wherever_it_is_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/var/lib/mitmsec/trust")

    monkeypatch.setattr(doctor_command, "_table", is_full)
    monkeypatch.setattr(sys, "argv", ["mitmsec", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "No space left on device: /var/lib/mitmsec/trust\n  make room" in capsys.readouterr().err


def test_ctrl_c_while_we_are_loaded_is_no_traceback() -> None:
    code = """
import os, signal, sys
from mitmsec.__main__ import main
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


MITMSEC = [sys.executable, "-m", "mitmsec"]
WRITES_MUCH = [[*MITMSEC, "policy", "init"], [*MITMSEC, "--help"], [*MITMSEC, "policy", "init", "--help"]]


@pytest.mark.parametrize("command", WRITES_MUCH, ids=" ".join)
def test_output_to_a_full_disk_is_the_machines_fault(command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "mitmsec: stdout: no space left on device"
    assert "Traceback" not in done.stderr
    assert "fault of mitmsec" not in done.stderr


@pytest.mark.parametrize("command", WRITES_MUCH, ids=" ".join)
def test_a_reader_that_has_gone_ends_us_quietly_as_sigpipe_would(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_socket_of_our_own_is_a_fault_and_no_reader_that_has_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(doctor_command, "_table", broken)
    monkeypatch.setattr(sys, "argv", ["mitmsec", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 125
    assert "Broken pipe" in capsys.readouterr().err
    monkeypatch.setattr(policy_commands, "STARTER", None)  # another fault, within a group
    monkeypatch.setattr(policy_commands.click, "echo", broken)  # and stderr's reader has gone, too
    monkeypatch.setattr(sys, "argv", ["mitmsec", "policy", "init"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 141


@pytest.mark.root
@pytest.mark.parametrize("words", [["run", "--", "true"], ["clean"], ["audit", "list"], ["audit", "verify", "--json"]])
def test_who_is_not_root_is_told_so_whatever_exists_already(tmp_path: Path, words: list[str]) -> None:
    """The state directory is there, and closed: nobody named it, so nobody is told that the option is wrong."""
    state = tmp_path / "state"
    for folder in ("run", "log"):
        (state / folder).mkdir(parents=True)
    (state / "log" / "audit.db").touch()
    for path, mode in ((state / "log", 0o700), (state / "run", 0o711), (state, 0o711)):
        path.chmod(mode)
        os.chown(path, 64_990, 64_990)
    done = subprocess.run(
        ["unshare", "--user", *MITMSEC, *words],  # in there nobody is root, and may only what others may
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MITMSEC_STATE": str(state)},
    )
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert f"sudo MITMSEC_STATE={state} " in done.stderr
    assert " ".join(words) in done.stderr
    assert "--state" not in done.stderr


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
        (
            "xyzzy",
            "there are apps, audit, ca, clean, demo, doctor, inspect, off, on, policy, quarantine, reload, run, start",
        ),
    ],
)
def test_a_misspelt_command_is_answered_with_the_near_one(word: str, says: str) -> None:
    shown = CliRunner().invoke(cli, [word])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert says in shown.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit", "lst"], "there is no command 'lst'; did you mean 'list'?"),
        (
            ["audit", "xyzzy"],
            (
                "there are account, approve, checkpoint, console, erase, explain, export, key, list, prove, requests, "
                "show, stats, unmask, verify"
            ),
        ),
        (["policy", "xyzzy"], "there are check, explain, init, lists, replay, test"),
    ],
)
def test_a_misspelt_command_of_a_group_is_answered_too(words: list[str], says: str) -> None:
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 2
    assert says in shown.stderr


@pytest.mark.parametrize("group", [[], ["audit"], ["policy"]], ids=lambda group: " ".join(group) or "mitmsec")
def test_no_summary_of_a_command_is_cut_at_80_columns(group: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80)
    listed = shown.stdout.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["help"], []),
        (["help", "audit"], ["audit"]),
        (["help", "audit", "list"], ["audit", "list"]),
        (["audit", "help"], ["audit"]),
    ],
)
def test_who_asks_for_help_in_words_gets_it(words: list[str], asked: list[str]) -> None:
    told = CliRunner().invoke(cli, words)
    assert told.exit_code == 0
    assert told.stdout == CliRunner().invoke(cli, [*asked, "--help"]).stdout
    unknown = CliRunner().invoke(cli, ["help", "xyzzy"])
    assert (unknown.exit_code, unknown.stdout) == (2, "")
