"""`mitmsec doctor`: what works on this machine, and why not."""

from __future__ import annotations

import json
import sys

import click
import msgspec
from rich.console import Console
from rich.table import Table

from mitmsec.service.options import EXIT_PRIVILEGE, debug_option, json_option


@click.command()
@json_option
@debug_option
def doctor(*, as_json: bool) -> None:
    """Say what works on this machine and what to do about what doesn't.

    Exit status 3 if `mitmsec run` cannot work here.
    """
    from mitmsec_redirect.probe import checks

    found = checks()
    if as_json:
        for check in found:
            click.echo(json.dumps(msgspec.to_builtins(check)))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in found:
            mark = "[green]works[/]" if check.ok else "[red]missing[/]"
            table.add_row(mark, check.name, check.detail)
            if not check.ok:
                table.add_row("", "", f"[bold]{check.remedy}[/]")
        Console().print(table)
    if not all(check.ok for check in found):
        sys.exit(EXIT_PRIVILEGE)
