"""What README.md shows can be done as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from mitmsec.cli import cli
from mitmsec.config import parse_policy
from mitmsec.core.policytest import run_tests
from mitmsec.service.demo_tour import STEPS

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, text in BLOCKS for line in text.splitlines() if not kind and line.startswith("mitmsec ")]


def test_the_policy_is_valid_and_its_tests_pass() -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    outcomes = run_tests(parse_policy(text, file="README.md", read_list=lambda name: ""), 0.0)
    assert outcomes
    assert all(outcome.passed for outcome in outcomes)


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_copied_as_it_stands(line: str) -> None:
    """Its words exist, its options too; what explains it is a comment, not one more argument."""
    words = shlex.split(line, comments=True)[1:]
    context, command = click.Context(cli, info_name="mitmsec"), cli
    while isinstance(command, click.Group):
        name, *words = words
        inner = command.get_command(context, name)
        assert inner is not None, name
        command, context = inner, click.Context(inner, parent=context)  # type: ignore[assignment]
    command.make_context(command.name, words)


def test_without_a_python_that_fits_it_says_where_one_comes_from(tmp_path: Path) -> None:
    """As on Debian 12, whose `python3` is too old."""
    (old := tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    tool = Path(__file__).parents[1] / "tools" / "python"
    done = subprocess.run(
        ["/bin/sh", str(tool)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    for way in ("Debian 13", "`uv python install 3.13`", "`pyenv install 3.13`", "make demo PYTHON="):
        assert way in done.stderr
    assert "make demo PYTHON=/path/to/python" in README


def test_the_tour_tells_of_the_steps_that_the_demo_takes() -> None:
    for step in STEPS:
        assert re.search(rf"✔  {step.name} +{re.escape(step.told)} +{re.escape(step.shown)}\n", README)
