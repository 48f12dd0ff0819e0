"""`mitmsec apps`: who has connected to what, and how sure it is that it was them."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mitmsec.audit.event import Kind
from mitmsec.audit.review import Filter
from mitmsec.service.apps import App, gathered
from mitmsec.service.audit_commands import instant_option, opened_log
from mitmsec.service.audit_table import size
from mitmsec.service.options import EXIT_USAGE, debug_option, fail, json_option, state_option
from mitmsec.service.terminal import console, shown, tell

SINCE = timedelta(hours=1)
CONNECTIONS_LIMIT = 10_000
WATCH_S = 1.0
ARROWS = {"inbound": "←", "outbound": "→"}


@click.command()
@state_option
@instant_option("--since", "Only what was heard of since then: a time, or a span such as 2h. Default: the last hour.")
@click.option("--app", metavar="PATH", help="Only this program: part of its path, or a glob over all of it.")
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C. On a terminal.")
@json_option
@debug_option
def apps(state_folder: Path, since: datetime | None, app: str | None, *, watch: bool, as_json: bool) -> None:
    """Say which programs have connected to what.

    Processes and their connections, in and out, ended ones too, with how the owner was found and how sure that is.
    With --json, one object for each process.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        fail("--watch is for a terminal", "leave it out, or read `mitmsec audit list --json` again", EXIT_USAGE)
    if as_json:
        for found in _found(state_folder, since, app):
            click.echo(msgspec.json.encode(_facts(found)))
    elif watch:
        _watch(state_folder, since, app)
    else:
        tell(console(), _table(_found(state_folder, since, app)))


def _watch(state_folder: Path, since: datetime | None, app: str | None) -> None:
    with Live(console=console(), screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(_table(_found(state_folder, since, app)[-(live.console.height // 2) :]), refresh=True)
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return


def _found(state_folder: Path, since: datetime | None, app: str | None) -> list[App]:
    wanted = Filter(kind=Kind.CONNECTION, app=app, since=since or datetime.now(UTC) - SINCE, limit=CONNECTIONS_LIMIT)
    with opened_log(state_folder) as log:
        return gathered(log.events(wanted))


def _facts(app: App) -> dict[str, object]:
    destinations = [msgspec.to_builtins(destination) for destination in app.destinations.values()]
    return {"process": app.process, "last": app.last, "connections": destinations}


def _table(found: list[App]) -> RenderableType:
    if not found:
        return Text("no program has connected to anything in this time; --since looks further back")
    return Group(*(part for app in found for part in (_heading(app), _destinations(app))))


def _heading(app: App) -> Text:
    process = app.process
    exe = process["exe"] or process.get("claimed_exe") or process["name"] or "unknown program"
    words = [f"pid {process['pid']}" if process["pid"] else "", shown(process["user"] or ""), _how_sure(app)]
    return Text.assemble((shown(exe), "bold"), "  ", (" · ".join(word for word in words if word), "dim"))


def _how_sure(app: App) -> str:
    return f"{app.process['confidence']}, by {app.process['source']}"


def _destinations(app: App) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in app.destinations.values():
        times = f"× {column.count}" if column.count > 1 else ""
        carried = f"{size(column.sent_bytes)} sent, {size(column.received_bytes)} received"
        table.add_row(
            f"  {ARROWS[column.direction]}", shown(column.where), times, column.action, column.outcome, carried
        )
    return table
