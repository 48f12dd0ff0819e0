"""How events look to people. Whatever a peer sent is shown so that it can neither move the cursor nor pose as ours.

    wide     # time app pid action what protocol detail outcome sent/received      one line an event
    narrow   # time app action what outcome                                        and, where there is more,
                     pid 28568 · tls · rule "no trackers" · 733 sent, 2.2k received      a second line under it
    slim     # time action what                                                    where that is not in one line,
                     blocked · curl · pid 28568 · tls …                            it goes on in the next

Nothing that an auditor needs is dropped for want of room: what does not fit beside stands below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.text import Text
from rich.tree import Tree

from mitmsec.core.model import Value
from mitmsec.service.terminal import shown

WIDE = 140  # columns from which one line has room for everything
SLIM = 80  # columns below which the second line has to hold the program and the outcome, too
WHAT_LINES = 3  # of a slim table, for what happened

ACTION_STYLES = {"block": "red", "bypass": "cyan", "capture": "yellow", "decrypt": "green"}
GOOD_OUTCOMES = frozenset({"completed", "open", "unseen"})

# The order in which `show` tells an event; what is not named here follows by its name.
FIRST_KEYS = (
    *("seq", "id", "time", "kind", "producer", "session", "connection"),
    *("operation", "what", "subject", "path", "rules", "names", "detail", "command", "status"),
    *("process", "pid", "started", "exe", "name", "sha256", "user", "parent"),
    *("direction", "protocol", "local", "remote", "asked", "address", "port", "host"),
    *("action", "rule", "reason", "outcome", "error", "bytes", "sent", "received", "duration_ms"),
    *("method", "url", "answered_by", "http_version", "request_bytes", "response_bytes", "content_type"),
    *("detector", "severity", "verdict", "summary", "evidence", "location", "confidence"),
    *("tls", "client", "server", "version", "cipher", "sni", "alpn"),
)
_RANK = {key: rank for rank, key in enumerate(FIRST_KEYS)}

Event = Mapping[str, Any]


class Column(Value, frozen=True):
    """A column of the table. Without `cap` it takes a share of what the others leave."""

    name: str
    cap: int | None = None  # cells wide at most
    is_right: bool = False
    share: int = 0


_NUMBER, _APP, _ACTION = Column("#", 9, is_right=True), Column("app", 16), Column("action", 11)
_WHAT, _OUTCOME = Column("what", share=5), Column("outcome", 18)
WIDE_COLUMNS = (
    *(_NUMBER, Column("time", 19), _APP, Column("pid", 7, is_right=True), _ACTION, _WHAT),
    *(Column("protocol", 9), Column("detail", share=3), _OUTCOME, Column("sent/received", 13, is_right=True)),
)
NARROW_COLUMNS = (_NUMBER, Column("time", 8), _APP, _ACTION, _WHAT, _OUTCOME)
SLIM_COLUMNS = (_NUMBER, Column("time", 8), _ACTION, _WHAT)


class Row(Value, frozen=True):
    """One event in words. `detail` is what there is to say of its kind: the rule, the type, the place."""

    number: Text
    when: datetime | None
    time: str
    app: str
    pid: str
    action: Text
    what: Text
    protocol: str = ""
    detail: str = ""
    outcome: Text = msgspec.field(default_factory=Text)
    sent_bytes: int | None = None
    received_bytes: int | None = None

    def wide(self) -> list[Text]:
        """One cell for each of WIDE_COLUMNS."""
        volume = "" if self.sent_bytes is None else f"{size(self.sent_bytes)}/{size(self.received_bytes or 0)}"
        time = self.time if self.when is None else f"{self.when:%Y-%m-%d %H:%M:%S}"
        cells = [Text(time), Text(self.app), Text(self.pid), self.action, self.what, Text(self.protocol)]
        return [self.number, *cells, Text(self.detail), self.outcome, Text(volume)]

    def narrow(self) -> list[Text]:
        """One cell for each of NARROW_COLUMNS."""
        number, time, action, what = self.slim()
        return [number, time, Text(self.app), action, what, self.outcome]

    def slim(self) -> list[Text]:
        """One cell for each of SLIM_COLUMNS."""
        time = self.time if self.when is None else f"{self.when:%H:%M:%S}"
        return [self.number, Text(time), self.action, self.what]

    def below(self, *, is_slim: bool) -> list[str]:
        """What `narrow`, or `slim`, leaves out."""
        volume = ""
        if self.sent_bytes is not None:
            volume = f"{size(self.sent_bytes)} sent, {size(self.received_bytes or 0)} received"
        pid = f"pid {self.pid}" if self.pid else ""
        first = [self.outcome.plain, self.app] if is_slim else []
        return [part for part in (*first, pid, self.protocol, self.detail, volume) if part]


def table_of(events: Iterable[Event], width: int, *, with_header: bool = True) -> Text:
    """The events as lines of at most `width` cells, without spaces at their ends."""
    rows = [_row(event) for event in events]
    lines = list(_wide(rows, width) if width >= WIDE else _narrow(rows, width, is_slim=width < SLIM))
    lines = lines if with_header else lines[1:]
    table = Text("\n", no_wrap=True, overflow="ignore").join(lines)
    table.no_wrap, table.overflow = True, "ignore"
    return table


def tree_of(event: Event) -> Tree:
    """Everything that one event says, what it is about first."""
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


# --- lines ------------------------------------------------------------------------------------------------------------
def _wide(rows: Sequence[Row], width: int) -> Iterator[Text]:
    cells = [row.wide() for row in rows]
    widths = _widths(WIDE_COLUMNS, cells, width)
    yield _header(WIDE_COLUMNS, widths)
    for row in cells:
        yield _line(WIDE_COLUMNS, widths, row)


def _narrow(rows: Sequence[Row], width: int, *, is_slim: bool) -> Iterator[Text]:
    columns = SLIM_COLUMNS if is_slim else NARROW_COLUMNS
    cells = [row.slim() if is_slim else row.narrow() for row in rows]
    widths = _widths(columns, cells, width)
    indent = widths[0] + widths[1] + 2  # under the app, or the action
    yield _header(columns, widths)
    day = ""
    for row, line in zip(rows, cells, strict=True):
        if row.when is not None and (today := f"{row.when:%Y-%m-%d %Z}") != day:
            day = today
            yield Text(" " * (widths[0] + 1) + day, style="bold")
        if is_slim:
            yield from _folded(columns, widths, line)
        else:
            yield _line(columns, widths, line)
        for more in _packed(row.below(is_slim=is_slim), width - indent):
            below = Text(" " * indent + more, style="dim")
            below.truncate(width, overflow="ellipsis")
            yield below


def _folded(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Text]) -> Iterator[Text]:
    """As `_line`, and what does not fit into the last column goes on below it."""
    *before, rest = cells
    for number in range(WHAT_LINES):
        room = widths[-1]
        while number < WHAT_LINES - 1 and rest[:room].cell_len > widths[-1]:
            room -= 1
        if number == WHAT_LINES - 1:
            room = len(rest)
        yield _line(columns, widths, [*(before if number == 0 else [Text()] * len(before)), rest[:room]])
        rest = rest[room:]
        if not rest.plain:
            return


def _packed(parts: Sequence[str], width: int) -> list[str]:
    """The parts in as few lines of `width` cells as they need; one that is too long for any has a line alone."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(longer := f"{lines[-1]} · {part}") <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    """As wide as the longest cell, or the cap; if that is too much, the columns without a cap give way."""
    longest = [max([len(column.name), *(row[place].cell_len for row in rows)]) for place, column in enumerate(columns)]
    widths = [min(need, column.cap or need) for need, column in zip(longest, columns, strict=True)]
    fixed = sum(wide for wide, column in zip(widths, columns, strict=True) if not column.share)
    room = width - fixed - (len(columns) - 1)
    flexible = [place for place, column in enumerate(columns) if column.share]
    shares = sum(columns[place].share for place in flexible)
    for place in sorted(flexible, key=lambda place: widths[place] / columns[place].share):
        share = columns[place].share
        widths[place] = min(widths[place], max(1, room * share // shares))  # what it does not need is the others'
        room, shares = room - widths[place], shares - share
    return widths


def _header(columns: Sequence[Column], widths: Sequence[int]) -> Text:
    return _line(columns, widths, [Text(column.name, style="bold") for column in columns])


def _line(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Text]) -> Text:
    """Cells beside each other; what is behind the last one that says something is its room, too."""
    last = max((place for place, cell in enumerate(cells) if cell.plain), default=0)
    line = Text()
    for place in range(last + 1):
        cell, wide = cells[place].copy(), widths[place]
        cell.truncate(wide if place < last else sum(widths[place:]) + len(widths) - 1 - place, overflow="ellipsis")
        gap = " " * (wide - cell.cell_len)
        line.append(" " if place else "")
        line.append_text(Text.assemble(gap, cell) if columns[place].is_right else Text.assemble(cell, gap))
    line.rstrip()
    return line


# --- events in words --------------------------------------------------------------------------------------------------
def _row(event: Event) -> Row:
    process = event.get("process") or {}
    when = _when(event)
    action, what, more = _by_kind(event)
    return Row(
        number=Text(str(event.get("seq", "")), style="dim"),
        when=when,
        time="" if when else shown(event.get("time")),
        app=shown(_app(process)),
        pid=str(process.get("pid", "")),
        action=action,
        what=what,
        **more,
    )


def _by_kind(event: Event) -> tuple[Text, Text, dict[str, Any]]:
    """Action and what happened, and those of Row's other fields that this kind of event has."""
    match event.get("kind"):
        case "connection":
            return _connection(event)
        case "request":
            return _request(event)
        case "finding":
            what = f"{event.get('detector', '')}: {event.get('summary', '')}"
            verdict = Text(shown(event.get("verdict", "")), style="magenta")
            detail = " · ".join(shown(event[key]) for key in ("severity", "location", "item") if event.get(key))
            more = {"detail": detail, "outcome": verdict}
            return Text("  finding", style="bold magenta"), Text(shown(what), "magenta"), more
        case kind:
            style = "red" if kind == "fault" else "dim"
            return Text(shown(kind), style=style), Text(shown(_sentence(event)), style=style), {}


def _connection(event: Event) -> tuple[Text, Text, dict[str, Any]]:
    action, outcome = str(event.get("action", "")), str(event.get("outcome", ""))
    volume = event.get("bytes") or {}
    more = {
        "protocol": shown(event.get("protocol", "")),
        "detail": f'rule "{shown(event["rule"])}"' if event.get("rule") else "",
        "outcome": Text(shown(outcome), style="" if outcome in GOOD_OUTCOMES else "red"),
        "sent_bytes": volume.get("sent"),
        "received_bytes": volume.get("received"),
    }
    return Text(shown(action), style=ACTION_STYLES.get(action, "")), Text(shown(destination(event))), more


def _answer(event: Event) -> Text:
    status, by = event.get("status"), event.get("answered_by")
    if by:
        return Text(f"{shown(status)} by {shown(by)}", style="red")
    return Text("no answer" if status is None else str(status))


def _request(event: Event) -> tuple[Text, Text, dict[str, Any]]:
    modified = f"modified by {', '.join(event['modified_by'])}" if event.get("modified_by") else ""
    more = {
        "protocol": shown(event.get("http_version", "")),
        "detail": shown(" · ".join(part for part in (event.get("content_type"), modified) if part)),
        "outcome": _answer(event),
        "sent_bytes": event.get("request_bytes", 0),
        "received_bytes": event.get("response_bytes", 0),
    }
    what = f"{event.get('method', '')} {event.get('url', '')}"
    return Text("  request", style="dim"), Text(shown(what)), more


def _rules(number: object) -> str:
    return f"{number} rule" if number == 1 else f"{number} rules"


def destination(event: Event) -> str:
    """Where it went; of a connection that came in, from where, without the port that its peer had by chance."""
    remote = event.get("remote") or {}
    host = remote.get("host") or remote.get("address") or "?"
    if event.get("direction") == "inbound":
        return f"from {host} on port {(event.get('local') or {}).get('port')}"
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
            detail = f" · {event['detail']}" if event.get("detail") else ""
            return f"{event.get('operation')}: {event.get('subject')}{detail}"
        case "review":
            keys = f"keys of {', '.join(event.get('people') or ())}" if event.get("people") else ""
            by = f"by {event['user']}" if event.get("user") else ""
            count = f"{event['count']} erased" if "count" in event else ""
            about = (event.get("item") or event.get("event"), count, by, keys, event.get("reason"))
            return " · ".join(str(part) for part in (event.get("operation"), *about) if part)
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


def _when(event: Event) -> datetime | None:
    """In the local time zone; None for what is no time."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).astimezone()
    except ValueError:
        return None


def _grow(tree: Tree, value: Event) -> None:
    for key in sorted(value, key=lambda key: (_RANK.get(key, len(_RANK)), key)):
        match value[key]:
            case dict() as inner:
                _grow(tree.add(Text(shown(key), style="cyan")), inner)
            case list() as items:
                branch = tree.add(Text(shown(key), style="cyan"))
                for part in items:
                    branch.add(Text(_word(part)))
            case item:
                text = "–" if item is None else _word(item)
                tree.add(Text.assemble((f"{shown(key)}: ", "cyan"), (text, "dim" if item is None else "")))


def _word(item: object) -> str:
    """As JSON has it: who reads both looks for the same word."""
    return str(item).lower() if isinstance(item, bool) else shown(item)
