"""How events look to people. Whatever a peer sent is shown so that it can neither move the cursor nor pose as ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

WIDTH_WITHOUT_TERMINAL = 160
MEDIUM, WIDE, FULL = 100, 120, 150  # columns from which the pid and bytes, the rule, the date have room

ACTION_STYLES = {"block": "red", "bypass": "cyan", "capture": "yellow", "decrypt": "green"}
GOOD_OUTCOMES = frozenset({"completed", "open"})

Event = Mapping[str, Any]


def console(*, stderr: bool = False) -> Console:
    """A console for people; where there is no terminal, lines are long enough to be searched."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH_WITHOUT_TERMINAL
    return made


def shown(value: object) -> str:
    """`value` with everything that is not printable escaped."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table. Without `cap` it takes a share of what the others leave."""

    name: str
    cap: int | None = None  # cells wide at most
    from_width: int = 0  # shown on terminals of so many columns
    justify: Literal["left", "right"] = "left"


COLUMNS = (
    Column("#", 9, justify="right"),
    Column("time", 19),
    Column("app", 16),
    Column("pid", 7, MEDIUM, "right"),
    Column("action", 11),
    Column("what"),
    Column("protocol", 9),
    Column("rule", None, WIDE),
    Column("outcome", 18),
    Column("sent/received", 13, MEDIUM, "right"),
)


def table_of(events: Iterable[Event], width: int) -> Table:
    """One row an event, for a terminal of `width` columns."""
    rows = [_cells(event, width) for event in events]
    wanted = [column.from_width <= width for column in COLUMNS]
    longest_of = [
        max([len(column.name), *(row[index].cell_len for row in rows)]) for index, column in enumerate(COLUMNS)
    ]
    shares = [longest for longest, shows in zip(longest_of, wanted, strict=True) if shows]
    is_tight = sum(shares) + len(shares) > width  # then the columns without a cap give way, and nothing else
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), expand=is_tight)
    for index, column in enumerate(COLUMNS):
        if not wanted[index]:
            continue
        longest = longest_of[index]
        table.add_column(
            column.name,
            justify=column.justify,
            no_wrap=True,
            overflow="ellipsis",
            width=None if column.cap is None else min(longest, column.cap),
            ratio=None if column.cap is not None or not is_tight else (3 if column.name == "what" else 1),
        )
    for row in rows:
        table.add_row(*(cell for cell, shows in zip(row, wanted, strict=True) if shows))
    return table


def tree_of(event: Event) -> Tree:
    """Everything that one event says."""
    tree = Tree(Text(f"{event.get('kind')} {shown(event.get('id'))}", style="bold"))
    _grow(tree, event)
    return tree


def size(count_bytes: int) -> str:
    """`count_bytes`, decimal, in few characters: 999, 1.2k, 34k, 5.6M."""
    number, units = float(count_bytes), iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while number >= 999.5 and (larger := next(units, None)) is not None:
        number, unit = number / 1000, larger
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"


def _cells(event: Event, width: int) -> list[Text]:
    """One cell for each of COLUMNS."""
    process = event.get("process") or {}
    action, what, protocol, rule, outcome, volume = _by_kind(event)
    return [
        Text(str(event.get("seq", "")), style="dim"),
        Text(_time(event, width)),
        Text(shown(_app(process))),
        Text(str(process.get("pid", ""))),
        action,
        what,
        Text(shown(protocol)),
        Text(shown(rule)),
        outcome,
        Text(volume),
    ]


def _rules(number: object) -> str:
    return f"{number} rule" if number == 1 else f"{number} rules"


def _by_kind(event: Event) -> tuple[Text, Text, str, str, Text, str]:
    """Action, what, protocol, rule, outcome and bytes of one event."""
    match event.get("kind"):
        case "connection":
            return _connection(event)
        case "request":
            status = event.get("status")
            return (
                Text("  request", style="dim"),
                Text(shown(f"{event.get('method', '')} {event.get('url', '')}")),
                str(event.get("http_version", "")),
                str(event.get("content_type") or ""),
                Text("no answer" if status is None else str(status)),
                _volume(event.get("request_bytes", 0), event.get("response_bytes", 0)),
            )
        case "finding":
            return (
                Text("  finding", style="bold magenta"),
                Text(shown(f"{event.get('detector', '')}: {event.get('summary', '')}"), style="magenta"),
                str(event.get("severity", "")),
                str(event.get("location", "")),
                Text(shown(event.get("verdict", "")), style="magenta"),
                "",
            )
        case kind:
            style = "red" if kind == "fault" else "dim"
            return Text(shown(kind), style=style), Text(shown(_sentence(event)), style=style), "", "", Text(""), ""


def _connection(event: Event) -> tuple[Text, Text, str, str, Text, str]:
    action, outcome = str(event.get("action", "")), str(event.get("outcome", ""))
    volume = event.get("bytes") or {}
    return (
        Text(shown(action), style=ACTION_STYLES.get(action, "")),
        Text(shown(_destination(event))),
        str(event.get("protocol", "")),
        str(event.get("rule", "")),
        Text(shown(outcome), style="" if outcome in GOOD_OUTCOMES else "red"),
        _volume(volume.get("sent", 0), volume.get("received", 0)),
    )


def _volume(sent_bytes: int, received_bytes: int) -> str:
    return f"{size(sent_bytes)}/{size(received_bytes)}"


def _destination(event: Event) -> str:
    remote = event.get("remote") or {}
    host = remote.get("host") or remote.get("address") or "?"
    return f"[{host}]:{remote.get('port')}" if ":" in host else f"{host}:{remote.get('port')}"


def _sentence(event: Event) -> str:
    """The events that are not about traffic, in one line."""
    match event.get("kind"):
        case "certificate":
            flaw = f", deliberately {event['flaw']}" if event.get("flaw") else ""
            return f"{', '.join(event.get('names') or ())} until {event.get('not_after')}{flaw}"
        case "policy":
            return f"{event.get('path')}: {_rules(event.get('rules'))}, fails {event.get('on_failure')}"
        case "ca":
            return f"{event.get('operation')}: {event.get('subject')}"
        case "service":
            status = "" if event.get("status") is None else f"status {event['status']}"
            parts = (event.get("operation"), " ".join(event.get("command") or ()), event.get("detail"), status)
            return " · ".join(str(part) for part in parts if part)
        case _:
            times = f" × {event['count']}" if event.get("count", 1) != 1 else ""
            failed = f"failed {event['failed']}" if event.get("failed") else ""
            return " · ".join(str(part) for part in (event.get("what"), event.get("detail"), failed) if part) + times


def _app(process: Event) -> str:
    exe = process.get("exe")
    return PurePosixPath(exe).name if exe else str(process.get("name") or "")


def _time(event: Event, width: int) -> str:
    try:
        local = datetime.fromisoformat(str(event.get("time"))).astimezone()
    except ValueError:
        return shown(event.get("time"))
    return local.strftime("%Y-%m-%d %H:%M:%S" if width >= FULL else "%H:%M:%S")


def _grow(tree: Tree, value: Event) -> None:
    for key, item in value.items():
        match item:
            case dict():
                _grow(tree.add(Text(shown(key), style="cyan")), item)
            case list():
                branch = tree.add(Text(shown(key), style="cyan"))
                for part in item:
                    branch.add(Text(shown(part)))
            case _:
                text = "–" if item is None else shown(item)
                tree.add(Text.assemble((f"{shown(key)}: ", "cyan"), (text, "dim" if item is None else "")))
