"""`mitmsec audit`: what was recorded, and whether the record is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind, Outcome
from mitmsec.core.model import Action
from mitmsec.service.audit_explain_command import explain
from mitmsec.service.audit_proofs import checkpoint, key, prove, verify
from mitmsec.service.audit_table import size, table_of, tree_of
from mitmsec.service.groups import Group
from mitmsec.service.log_reading import instant_option, opened_log
from mitmsec.service.options import (
    EXIT_NOT_SO,
    debug_option,
    fail,
    json_option,
    state_option,
)
from mitmsec.service.terminal import console, shown, tell

SHOWN_EVENTS = 100  # of `list` for people, unless --limit says otherwise
ENUMS = {"kind": Kind, "action": Action, "outcome": Outcome}
KINDS_HELP = f"Only events of this kind: {', '.join(Kind)}."
OUTCOMES_HELP = f"How the connection ended, or that a finding stopped the request: {', '.join(Outcome)}."


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Nothing is no criterion: a variable that is empty in a script must not show everything."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; leave the option out to see all")
    return value


@click.group(cls=Group)
def audit() -> None:
    """Review what was recorded; verify that it is whole."""


@audit.command("list")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), metavar="KIND", help=KINDS_HELP)
@click.option(
    "--app",
    callback=_words,
    metavar="TEXT|GLOB",
    help="Part of the executable's path, or a glob over all of it; whatever the case.",
)
@click.option(
    "--host", callback=_words, metavar="NAME|GLOB", help="A host and what is below it, an address, or a glob."
)
@click.option(
    "--action", type=click.Choice([action.value for action in Action]), help="What was done to the connection."
)
@click.option("--rule", callback=_words, metavar="NAME|GLOB", help="Connections that this rule of the policy decided.")
@click.option("--outcome", type=click.Choice([end.value for end in Outcome]), metavar="OUTCOME", help=OUTCOMES_HELP)
@click.option(
    "--session", callback=_words, metavar="ID", help="One run, by the `session` that stands in each of its events."
)
@instant_option("--since", "RFC 3339, or a span before now: 10m, 2h, 3d.")
@instant_option("--until", "As --since.")
@click.option(
    "--text", callback=_words, metavar="TEXT", help="In a value, from a word's beginning on; whatever the case."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"The newest N that match. Default: {SHOWN_EVENTS}; with --json all.",
)
@json_option
@state_option
@debug_option
def list_events(*, as_json: bool, state_folder: Path, limit: int | None, **criteria: Any) -> None:
    """Show events, the newest last. An event must meet every filter that is given."""
    criteria |= {key: of(value) for key, of in ENUMS.items() if (value := criteria[key])}
    wanted = Filter(**criteria, limit=limit if limit or as_json else SHOWN_EVENTS)
    with opened_log(state_folder, skips=True) as log:
        if as_json:
            for event in log.events(wanted):
                _print_json(event)
            return
        events = list(log.events(wanted))
        out = console()
        if events:
            tell(out, table_of(events, out.width))
        elif not log.unread:
            click.echo("no event matches", err=True)
        if limit is None and len(events) == SHOWN_EVENTS:
            click.echo(f"the newest {SHOWN_EVENTS} events; --limit shows more", err=True)


@audit.command()
@click.argument("which", metavar="ID|NUMBER")
@json_option
@state_option
@debug_option
def show(which: str, as_json: bool, state_folder: Path) -> None:
    """Show one event, whole.

    For a connection also what was recorded on it. NUMBER is what `audit list` shows first; ID is the event's own.
    """
    with opened_log(state_folder, skips=True) as log:
        event = log.event(which)
        if event is None:
            if log.unread:
                return None  # it may be one of those
            fail(f"there is no event {which}", "`mitmsec audit list` shows what there is", EXIT_NOT_SO)
        if as_json:
            return _print_json(event)
        out = console()
        parts: list[RenderableType] = [tree_of(event)]
        if event.get("kind") == Kind.CONNECTION and isinstance(event.get("connection"), str):
            others = [other for other in log.of_connection(event["connection"]) if other.get("seq") != event.get("seq")]
            if others:
                parts += [Text("\non this connection", style="bold"), table_of(others, out.width)]
        tell(out, *parts)


audit.add_command(explain)
for command in (verify, prove, checkpoint, key):
    audit.add_command(command)


@audit.command()
@json_option
@state_option
@debug_option
def stats(as_json: bool, state_folder: Path) -> None:
    """Sum up the connections by program and action."""
    with opened_log(state_folder, skips=True) as log:
        rows = log.stats()
    if as_json:
        for row in rows:
            _print_json(row)
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("app", "action"):
        table.add_column(column)
    for column in ("connections", "sent", "received"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (row["app"] or "unknown", row["action"], row["connections"], size(row["sent"]), size(row["received"]))
        table.add_row(*(Text(shown(cell)) for cell in cells))
    tell(console(), table)


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
