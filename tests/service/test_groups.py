"""A word that is no command is answered with what was probably meant, or with all that there is."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from mitmsec.service.groups import Group


@click.group(cls=Group)
def tools() -> None:
    """Tools."""


@tools.command()
def hammer() -> None:
    click.echo("bang")


@tools.command()
def saw() -> None:
    click.echo("rrr")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("hamer", "there is no command 'hamer'; did you mean 'hammer'?"),
        ("xyz", "there is no command 'xyz'; there are hammer, saw"),
        ("--xyz", "No such option"),
    ],
)
def test_a_word_that_is_none_is_wrong_usage(word: str, says: str) -> None:
    shown = CliRunner().invoke(tools, [word])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert says in shown.stderr


def test_a_command_is_run() -> None:
    assert CliRunner().invoke(tools, ["hammer"]).stdout == "bang\n"
