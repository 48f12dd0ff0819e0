"""`mitmsec apps`: who has connected to what, and how sure it is that it was them."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import click
import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.core.model import Value
from mitmsec.service.apps import App, Destination, gathered
from mitmsec.service.audit_table import ACTION_STYLES, size
from mitmsec.service.log_reading import instant_option, opened_log
from mitmsec.service.options import EXIT_USAGE, debug_option, fail, json_option, state_option
from mitmsec.service.terminal import console, shown, tell

SINCE = timedelta(hours=1)
CONNECTIONS_LIMIT = 10_000
WATCH_S = 1.0
GAP = 2  # between columns
NAME_LEAST = 20  # columns that a name or a path keeps on the narrowest of terminals
NAME_COLUMN, ACTION_COLUMN = 1, 3
UNLIMITED = 1 << 20  # nobody reads a pipe by the screen
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
    with Live(console=console(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                found = _found(state_folder, since, app)
                live.update(_screen(found, live.console.height), refresh=True)
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return


def _screen(found: list[App], height: int) -> RenderableType:
    """As many programs as fit, who was heard of last standing first, below a line that says how many there are."""
    newest: list[App] = []
    rows = height - 1
    for app in reversed(found):
        rows -= 1 + len(app.destinations)
        if rows < 0 and newest:
            break
        newest.append(app)
    hidden = len(found) - len(newest)
    words = [_counted(found), f"the newest {len(newest)} are shown" if hidden else "", "Ctrl-C ends"]
    return Group(Text(" · ".join(filter(None, words)), "dim", no_wrap=True, overflow="ellipsis"), _table(newest))


def _counted(found: list[App]) -> str:
    connections = sum(app.connections for app in found)
    return f"{len(found)} {'program' if len(found) == 1 else 'programs'}, {connections} connections"


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
    return Listing(found)


class Listing(Value, frozen=True):
    """Programs, each above what it has connected to. The columns of all of them stand below each other.

    No line is broken. On a terminal that is too narrow, names give way, and of a path its front: its end tells more.
    """

    found: list[App]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width if console.is_terminal else UNLIMITED
        rows = [[_cells(one) for one in app.destinations.values()] for app in self.found]
        widths = [max(map(cell_len, column)) for column in zip(*chain.from_iterable(rows), strict=True)]
        others = sum(width + GAP for width in widths) - widths[NAME_COLUMN]
        widths[NAME_COLUMN] = max(NAME_LEAST, min(widths[NAME_COLUMN], room - others))
        for app, lines in zip(self.found, rows, strict=True):
            yield _heading(app, room)
            yield from (_line(cells, widths) for cells in lines)


def _heading(app: App, room: int) -> Text:
    process = app.process
    exe = shown(process["exe"] or process.get("claimed_exe") or process["name"] or "unknown program")
    known = [f"pid {process['pid']}" if process["pid"] else "", shown(process["user"] or ""), _how_sure(app)]
    words = " · ".join(filter(None, known))
    most = max(NAME_LEAST, room - cell_len(words) - GAP)
    if cell_len(exe) > most:
        while cell_len(exe) >= most:
            exe = exe[1:]
        exe = f"…{exe}"
    return Text.assemble((exe, "bold"), " " * GAP, (words, "dim"), no_wrap=True, overflow="ellipsis")


def _how_sure(app: App) -> str:
    source = app.process["source"]
    return f"{app.process['confidence']}, by {source}" if source else str(app.process["confidence"])


def _cells(column: Destination) -> tuple[str, ...]:
    times = f"× {column.count}" if column.count > 1 else ""
    carried = ""
    if column.sent_bytes is not None:
        carried = f"{size(column.sent_bytes)} sent, {size(column.received_bytes or 0)} received"
    return f"  {ARROWS[column.direction]}", shown(column.where), times, column.action, column.outcome, carried


def _line(cells: tuple[str, ...], widths: list[int]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if not width:
            continue  # a column in which nothing stands
        if cell_len(cell) > width:
            cell = f"{set_cell_size(cell, width - 1)}…"
        style = ACTION_STYLES.get(cell, "") if place == ACTION_COLUMN else ""
        line.append(set_cell_size(cell, width), style).append(" " * GAP)
    line.rstrip()
    return line
