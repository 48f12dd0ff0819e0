"""Options and messages that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from mitmsec.service.called import as_root
from mitmsec.service.state import DEFAULT, State
from mitmsec.service.terminal import shown

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_NOT_SO, EXIT_USAGE, EXIT_PRIVILEGE, EXIT_FAULT = 1, 2, 3, 125


def state_option[Command: Callable[..., Any]](command: Command) -> Command:
    """`--state DIR`, also MITMSEC_STATE."""
    return click.option(
        "--state",
        "state_folder",
        type=click.Path(file_okay=False, readable=False, path_type=Path),  # root's own; who may not is told by us
        envvar="MITMSEC_STATE",
        default=DEFAULT,
        show_default=True,
        metavar="DIR",
        help="Where mitmsec keeps everything: log, keys, sockets. Also MITMSEC_STATE.",
    )(command)


def json_option[Command: Callable[..., Any]](command: Command) -> Command:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line on stdout, nothing else there."
    )(command)


def debug_option[Command: Callable[..., Any]](command: Command) -> Command:
    """`--debug`, read by mitmsec.cli.main."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when something fails.")(
        command
    )


def fail(error: str, remedy: str, status: int) -> NoReturn:
    """Say what happened and what to do next on stderr, and end with `status`."""
    click.echo(f"mitmsec: {_told(error)}", err=True)
    if remedy:
        click.echo(f"  {_told(remedy)}", err=True)
    sys.exit(status)


def _told(text: str) -> str:
    """Names and words of others may stand in it; only the ends of lines are ours."""
    return "\n".join(map(shown, text.split("\n")))


def need_root(what: str) -> None:
    """End with status 3 unless we are root."""
    if os.geteuid() != 0:
        fail(f"{what} needs root", f"try: {as_root()}", EXIT_PRIVILEGE)


def open_state(folder: Path) -> State:
    return State(folder)
