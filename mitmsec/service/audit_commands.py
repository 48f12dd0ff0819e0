"""`mitmsec audit`: what was recorded, and whether the record is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mitmsec.audit.criteria import Facet, Filter
from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind
from mitmsec.audit.questions import OVERVIEW
from mitmsec.service.audit_explain_command import explain
from mitmsec.service.audit_export_command import export
from mitmsec.service.audit_filters import filter_of, filter_options
from mitmsec.service.audit_proofs import checkpoint, key, prove, verify
from mitmsec.service.audit_table import size, table_of, tree_of
from mitmsec.service.content_commands import approve, erase, requests, unmask
from mitmsec.service.groups import Group
from mitmsec.service.importing import imported
from mitmsec.service.log_reading import opened_log
from mitmsec.service.options import (
    EXIT_NOT_SO,
    debug_option,
    fail,
    json_option,
    state_option,
)
from mitmsec.service.terminal import console, shown, tell

SHOWN_EVENTS = 100  # of `list` for people, unless --limit says otherwise
FOLLOWED_EVENTS = 10  # before what comes
FOLLOW_S = 0.5


LATER = {  # imported when they are asked for: the others need nothing of a server
    "account": "mitmsec.service.account_commands:account",
    "console": "mitmsec.service.console_command:console",
}


class _Audit(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *LATER])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LATER:
            return super().get_command(ctx, cmd_name)
        module, _, name = LATER[cmd_name].partition(":")
        command: click.Command = getattr(imported(module), name)
        return command


@click.group(cls=_Audit)
def audit() -> None:
    """Review what was recorded; verify that it is whole."""


@audit.command("list")
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"The newest N that match. Default: {SHOWN_EVENTS}; with --json all.",
)
@click.option("--before", type=click.IntRange(min=0), metavar="NUMBER", help="Only events in front of this one.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@json_option
@state_option
@debug_option
def list_events(
    *, as_json: bool, state_folder: Path, limit: int | None, before: int | None, follow: bool, **criteria: Any
) -> None:
    """Show events, the newest last. An event must meet every filter that is given."""
    if follow and before is not None:
        raise click.UsageError("what comes is behind all events: --follow goes without --before")
    limit = limit or (None if as_json and not follow else FOLLOWED_EVENTS if follow else SHOWN_EVENTS)
    wanted = replace(filter_of(criteria, limit), before=before)
    if follow:
        return _follow(state_folder, wanted, as_json=as_json)
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
        if len(events) == SHOWN_EVENTS == limit:
            older = f"--before {events[0]['seq']} shows older ones"
            click.echo(f"the newest {SHOWN_EVENTS} events; --limit shows more, {older}", err=True)


def _follow(state_folder: Path, wanted: Filter, *, as_json: bool) -> None:
    """The newest, and then what comes; ends with Ctrl-C, or when its reader goes away.

    The log is opened for each look: who has it open keeps SQLite from tidying up.
    """
    out, is_first, over = console(), True, threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: over.set())  # between events, so that none is torn
    try:
        while not over.is_set():
            with opened_log(state_folder) as log:
                size = log.size()
                events = list(log.events(replace(wanted, before=size)))
            if as_json:
                for event in events:
                    _print_json(event)
                sys.stdout.flush()
            elif events:
                tell(out, table_of(events, out.width, with_header=is_first))
                is_first = False
            wanted = replace(wanted, after=size - 1, limit=None)
            over.wait(FOLLOW_S)
    finally:
        signal.signal(signal.SIGINT, before)


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


for command in (explain, export, verify, prove, checkpoint, key, erase, unmask, approve, requests):
    audit.add_command(command)


@audit.command()
@click.option(
    "--by",
    type=click.Choice(OVERVIEW),
    metavar="FACET",
    help=f"Count all events that match by this instead: {', '.join(OVERVIEW)}.",
)
@filter_options
@json_option
@state_option
@debug_option
def stats(*, by: Facet | None, as_json: bool, state_folder: Path, **criteria: Any) -> None:
    """Sum up the connections by program and action.

    With --by, or with a filter, count events instead, whole hours of them; a connection once, when it has ended.
    """
    wanted = filter_of(criteria, None)
    with opened_log(state_folder, skips=True) as log:
        if by is None and wanted == Filter():
            return _tell_volumes(log.stats(), as_json=as_json)
        counted = log.counted(wanted)
    rows = [{by or "action": text, "events": number} for text, number in counted.by[by or "action"].most_common()]
    if as_json:
        for row in rows:
            _print_json(row)
        return
    _tell_rows([by or "action"], ["events"], [list(row.values()) for row in rows])
    click.echo(f"of {counted.total} events", err=True)


def _tell_volumes(rows: Sequence[Fields], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            _print_json(row)
        return
    cells = [
        [row["app"] or "unknown", row["action"], row["connections"], size(row["sent"]), size(row["received"])]
        for row in rows
    ]
    _tell_rows(["app", "action"], ["connections", "sent", "received"], cells)


def _tell_rows(words: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    tell(console(), table)


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
