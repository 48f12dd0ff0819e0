"""What people see: whose lines end where their words end, and in which nobody else can pose as us.

Colours and widths are for terminals. In a pipe there is neither colour nor padding, and lines are long enough to be
searched.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mitmsec.core.printable import shown

if TYPE_CHECKING:  # a run of a command mostly shows nothing
    from rich.console import Console, RenderableType

WIDTH_WITHOUT_TERMINAL = 160

__all__ = ["console", "shown", "tell"]


def console(*, stderr: bool = False, width_in_pipe: int = WIDTH_WITHOUT_TERMINAL) -> Console:
    """A console for people. COLUMNS and NO_COLOR count, as everywhere."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = width_in_pipe
    return made


def tell(out: Console, *parts: RenderableType) -> None:
    """Print `parts`, one below the other. Where there is no terminal, no line ends in spaces."""
    if out.is_terminal:
        for part in parts:
            out.print(part)
        return
    with out.capture() as captured:
        for part in parts:
            out.print(part)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), file=out.file)
