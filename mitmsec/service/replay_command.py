"""`mitmsec policy replay`: a policy over flows that are over, and what would change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.core.model import Process
from mitmsec.core.policytest import basename
from mitmsec.core.replaying import Answer, Replay, Replayed, Row, Tally
from mitmsec.core.selector import NO_PID
from mitmsec.service.called import as_root
from mitmsec.service.captured_flows import NotPcapng
from mitmsec.service.log_reading import instant_option, opened_log, who_may_read
from mitmsec.service.options import (
    EXIT_NOT_SO,
    EXIT_PRIVILEGE,
    EXIT_USAGE,
    debug_option,
    fail,
    json_option,
    state_option,
)
from mitmsec.service.policy_loading import load
from mitmsec.service.policy_versions import PolicyVersions
from mitmsec.service.replay_sources import CapturedFlows, LogFlows, Subject, Told
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec_redirect.replay import CaptureUnreadable

CHANGING_SHOWN, STAYING_SHOWN = 50, 5  # rows, for people
LOG_OPTIONS = ("since", "until", "app", "host", "session")


@click.command()
@click.argument("file", metavar="F", type=click.Path(path_type=Path))
@instant_option("--since", "Only connections recorded since then: RFC 3339, or a span before now: 10m, 2h, 3d.")
@instant_option("--until", "Only connections recorded before then.")
@click.option("--app", metavar="TEXT|GLOB", help="Only of these programs, as for `audit list`.")
@click.option("--host", metavar="NAME|GLOB", help="Only to these hosts, as for `audit list`.")
@click.option("--session", metavar="ID", help="Only those of one run.")
@click.option(
    "--pcap", type=click.Path(path_type=Path), metavar="FILE", help="The flows of this pcapng file, not of the log."
)
@click.option("--program", metavar="P", help="With --pcap: whose flows are that the file names no process for.")
@click.option("--expect-same", is_flag=True, help="Exit status 1 if anything changes, or might.")
@json_option
@state_option
@debug_option
def replay(
    file: Path, *, pcap: Path | None, program: str | None, expect_same: bool, as_json: bool, state_folder: Path,
    **wanted: Any,
) -> None:  # fmt: skip
    """Run F over recorded flows and show what would change.

    Over the connections in the log that have ended, or over the flows of a capture. For each the answer of F stands
    against that of the policy which decided it then.
    """
    loaded = load(file, as_json=as_json)
    loaded.forget_keys()
    replayed, tally = Replay(loaded.policy), Tally()
    with _source(pcap, program, State(state_folder), wanted) as (source, total), _progress(total, as_json) as told:
        for subject in source.flows(told):
            one = replayed.of(subject.flow, subject.before)
            tally.add(one, subject.example)
            if as_json and (one.changes or one.unsettled):
                _print_json(_change(subject, one))
    if as_json:
        _print_json(_summary(tally, source))
    else:
        _tell(file, tally, source)
    if expect_same and (tally.changed or tally.unsettled):
        sys.exit(EXIT_NOT_SO)


@contextmanager
def _source(
    pcap: Path | None, program: str | None, state: State, wanted: dict[str, datetime | str | None]
) -> Iterator[tuple[LogFlows | CapturedFlows, int]]:
    """The flows that are meant, and how much there is to read; what cannot be read ends the command."""
    if pcap is None:
        if program is not None:
            fail("--program is for flows of a capture", "name one with --pcap, or use --app", EXIT_USAGE)
        with opened_log(state.folder) as log, _readable(state):
            chosen = Filter(kind=Kind.CONNECTION, **wanted)  # type: ignore[arg-type]
            yield LogFlows(log, PolicyVersions(state.policies), chosen), log.size()
        return
    if given := [f"--{name}" for name in LOG_OPTIONS if wanted[name] is not None]:
        fail(f"{given[0]} chooses from the log, not from a capture", "leave it out, or --pcap", EXIT_USAGE)
    process = None if program is None else Process(pid=NO_PID, exe=program, name=basename(program), source="question")
    try:
        yield CapturedFlows(pcap, process), pcap.stat().st_size
    except NotPcapng as error:
        fail(str(error), f"make a pcapng of it: editcap -F pcapng {pcap} NEW.pcapng", EXIT_USAGE)
    except CaptureUnreadable as error:
        fail(f"{pcap}: {error}", "what stands before that was not enough to say what would change", EXIT_USAGE)
    except OSError as error:
        fail(f"{pcap} cannot be read: {error.strerror}", "name a pcapng file that you may read", EXIT_USAGE)


@contextmanager
def _readable(state: State) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        what = f"the policies kept in {state.policies} are not for you to read"
        fail(what, f"{who_may_read()}; try: {as_root()}", EXIT_PRIVILEGE)


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Told]:
    """A progress bar on stderr, for people who wait."""
    out = console(stderr=True)
    with Progress(console=out, transient=True, disable=quiet or not out.is_terminal) as progress:
        task = progress.add_task("replaying", total=total)
        yield lambda count: progress.update(task, completed=count)


# -- for scripts -------------------------------------------------------------------------------------------------------
def _change(subject: Subject, one: Replayed) -> dict[str, object]:
    flow = subject.flow
    return {
        "kind": "change" if one.changes else "unsettled",
        "connection": subject.id,
        "began": subject.began.isoformat(),
        "process": {"pid": flow.process.pid, "exe": flow.process.exe, "name": flow.process.name},
        "direction": flow.direction,
        "protocol": flow.protocol or flow.transport,
        "remote": {"address": flow.remote.address, "port": flow.asked.port, "host": subject.host},
        "from": one.before,
        "to": one.after,
        "unsettled": _unsettled(one),
    }


def _unsettled(one: Replayed) -> list[str]:
    return [f'rule "{rule}" asks for {key}, which is not on record' for rule, key in one.unsettled]


def _summary(tally: Tally, source: LogFlows | CapturedFlows) -> dict[str, object]:
    rows = [*tally.rows(changes=True), *tally.rows(changes=False)]
    return {
        "kind": "summary",
        "flows": tally.flows,
        "changed": tally.changed,
        "unsettled": tally.unsettled,
        "by_record": source.by_record,
        "left_out": dict(source.left_out),
        "counts": [
            {"from": _answer(row.before), "to": _answer(row.after), "count": row.count, "example": row.example}
            for row in rows
        ],
    }


def _answer(answer: Answer) -> Answer | None:
    return answer if answer.action else None


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))


# -- for people --------------------------------------------------------------------------------------------------------
def _tell(file: Path, tally: Tally, source: LogFlows | CapturedFlows) -> None:
    verb = "changes" if tally.changed == 1 else "change"
    headline = f"{shown(file)} over {tally.flows} flow{'' if tally.flows == 1 else 's'}: "
    parts: list[RenderableType] = [Text.assemble(headline, (f"{tally.changed} {verb}", "bold"))]
    changing, staying = tally.rows(changes=True), tally.rows(changes=False)
    if changing:
        parts += ["", _table(changing[:CHANGING_SHOWN]), *_more(len(changing) - CHANGING_SHOWN)]
    if staying:
        parts += ["", Text("as before", style="dim"), _table(staying[:STAYING_SHOWN], stays=True)]
        parts += _more(len(staying) - STAYING_SHOWN)
    tell(console(), *parts)
    for words in _caveats(tally, source):
        click.echo(words, err=True)


def _more(rows: int) -> list[Text]:
    return [Text(f"and {rows} more; --json has them all", style="dim")] if rows > 0 else []


def _caveats(tally: Tally, source: LogFlows | CapturedFlows) -> Iterator[str]:
    if tally.unsettled:
        yield f"of {tally.unsettled} it is not certain: rules ask for what is not on record; --json says which"
    if source.by_record:
        yield f"of {source.by_record} the policy of that time is not kept: what is on record stands for it"
    for why, count in source.left_out.items():
        yield f"{count} left out: {shown(why)}"


def _table(rows: list[Row], *, stays: bool = False) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_header=not stays)
    table.add_column("flows", justify="right", no_wrap=True)
    for column in ("is",) if stays else ("from", "to"):
        table.add_column(column, overflow="fold", ratio=2)
    table.add_column("for example", overflow="fold", ratio=3)
    for row in rows:
        answers = (row.after,) if stays else (row.before, row.after)
        table.add_row(str(row.count), *map(_words, answers), Text(shown(row.example)))
    return table


def _words(answer: Answer) -> Text:
    if not answer.action:
        return Text("not known", style="dim")
    return Text.assemble((answer.action, "bold"), f' by "{shown(answer.rule)}"')
