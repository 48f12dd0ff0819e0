"""`mitmsec inspect`: what inspectors would find in files. Nothing is recorded, and nothing is done about it.

files ── slices ──► Guarded (mitmsec.core.inspecting), as a worker would ask ──► findings, failures ──► stdout, stderr
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from mitmsec.core.inspecting import Guarded, Inspected
from mitmsec.core.inspection import AnyInspector, AwaitedInspector, Part, PartKind
from mitmsec.core.model import NOTHING_CLEAR
from mitmsec.core.policyfile import NEEDS_WORDS
from mitmsec.core.rule_hits import Hits
from mitmsec.engine.awaiting import Awaited
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, json_option
from mitmsec.service.policy_loading import flaws_told, load
from mitmsec.service.terminal import console, shown
from mitmsec_addons.registry import KNOWN, Names, build
from mitmsec_addons.yara import Scan, Yara
from mitmsec_addons.yara_rules import RuleFile, RuleSet, compiled

if TYPE_CHECKING:
    from mitmsec_addons.installed import Make

SLICE_BYTES = 1 << 16
PART_LIMIT_S = 60.0  # of this process's own time, for each inspector and file: as in a worker
STDIN = "-"

type Told = Callable[[int], None]


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--inspector",
    "named",
    multiple=True,
    metavar="NAME|FILE.py",
    help="One to run, by name, or those that a Python file defines; may be given again.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="A policy, for its inspectors and their words.",
)
@json_option
@debug_option
def inspect(files: tuple[Path, ...], named: tuple[str, ...], policy_file: Path | None, as_json: bool) -> None:
    """Run the inspectors over files, as a dry run.

    FILE may be -, for standard input. Without --inspector these are the ones that the policy names; without either, all
    that need no words. Evidence is redacted, as it is in the log. Exit status: 0 nothing found, 1 something found or
    not all of it inspected, 2 wrong usage, or a file that cannot be read.
    """
    inspectors = _inspectors(named, policy_file, as_json=as_json)
    told_any = unreadable = False
    with _progress(files, quiet=as_json) as told:
        for file in files:
            try:
                for inspected in _read(file, inspectors, told):
                    _tell(file, inspected, as_json=as_json)
                    told_any = True
            except OSError as error:
                unreadable = True
                click.echo(f"mitmsec: {shown(file)} cannot be read: {error.strerror or error}", err=True)
    if unreadable:
        click.echo("  name files that you may read", err=True)
        sys.exit(EXIT_USAGE)
    if told_any:
        sys.exit(EXIT_NOT_SO)


# -- which -------------------------------------------------------------------------------------------------------------
def _inspectors(named: Sequence[str], policy_file: Path | None, *, as_json: bool) -> list[AnyInspector]:
    """What is asked for, or the end of the command."""
    ours: dict[str, Make] = {}
    names: list[str] = []
    for name in named:
        found = _defined(Path(name)) if name.endswith(".py") else {}
        ours |= found
        names += found or [name]
    words: Mapping[str, tuple[str, ...]] = {}
    rules: Sequence[RuleFile] = ()
    if policy_file is not None:
        loaded = load(policy_file, as_json=as_json, others=ours)
        loaded.forget_keys()
        words, rules = dict(loaded.policy.inspectors), loaded.rules
    names = names or [*words] or sorted(KNOWN - NEEDS_WORDS)
    made = [_made(ours.get(name), name, words.get(name, ())) for name in dict.fromkeys(names)]
    for inspector in made:
        if isinstance(inspector, Yara) and policy_file is not None:
            with flaws_told(policy_file, as_json=as_json):
                inspector.scan = _scanning_here(RuleSet(compiled(rules)))
    return made


def _scanning_here(rules: RuleSet) -> Scan:
    """Nobody else is served meanwhile."""

    async def scan(flow: str, content: bytes) -> Hits:
        return rules.scan(content)

    return scan


def _defined(path: Path) -> dict[str, Make]:
    from mitmsec_addons.installed import NoInspector, in_file

    try:
        return in_file(path)
    except NoInspector as error:
        fail(str(error), "docs/inspectors.md has one of ten lines to begin with", EXIT_USAGE)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}", "name a Python file that you may read", EXIT_USAGE)


def _made(make: Make | None, name: str, words: tuple[str, ...]) -> AnyInspector:
    if make is None and name not in Names():
        fail(
            f'there is no inspector "{name}"', f"there are {', '.join(Names())}, and files that end in .py", EXIT_USAGE
        )
    if make is None and name in NEEDS_WORDS and not words:
        fail(f"{name} has nothing to look for", f"give a policy with [inspector.{name}]: --policy F", EXIT_USAGE)
    try:
        return build(name, words) if make is None else make(words)
    except ValueError as error:
        fail(str(error), f"mend {name}, or leave it out", EXIT_USAGE)


# -- reading -----------------------------------------------------------------------------------------------------------
def _read(file: Path, inspectors: Sequence[AnyInspector], told: Told) -> Iterator[Inspected]:
    """Whatever is found and whatever fails. Raises OSError."""
    name = "" if str(file) == STDIN else file.name
    part = Part(flow="dry-run", kind=PartKind.BODY, sent=True, host="", file_name=name)  # as an upload
    awaited = Awaited([one for one in inspectors if isinstance(one, AwaitedInspector)], part)
    others = [one for one in inspectors if not isinstance(one, AwaitedInspector)]
    guarded = Guarded([*others, *awaited.within], part, clock=time.process_time, budget_s=PART_LIMIT_S)
    with _opened(file) as source, asyncio.Runner() as runner:
        while data := source.read(SLICE_BYTES):
            told(len(data))
            yield from _anything(guarded.feed(data))
            if not awaited.idle:
                yield from _anything(runner.run(awaited.feed(data)))
        yield from _anything(guarded.close())
        if not awaited.idle:
            yield from _anything(runner.run(awaited.close()))


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == STDIN:
        yield sys.stdin.buffer
        return
    with file.open("rb") as source:
        yield source


def _anything(inspected: Inspected) -> Iterator[Inspected]:
    if inspected.findings or inspected.faults:
        yield inspected


@contextmanager
def _progress(files: Sequence[Path], *, quiet: bool) -> Iterator[Told]:
    """A progress bar on stderr, for people who wait."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import Progress

    total = sum(file.stat().st_size for file in files if file.is_file())
    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("inspecting", total=total or None)
        yield lambda count: progress.advance(task, count)


# -- telling -----------------------------------------------------------------------------------------------------------
def _tell(file: Path, inspected: Inspected, *, as_json: bool) -> None:
    if as_json:
        return _tell_json(str(file), inspected)
    for finding in inspected.findings:
        evidence = f" [{finding.evidence}]" if finding.evidence else ""
        sure = f"{finding.severity.value}, {finding.confidence:.1f}"
        where = _where(finding.location)
        click.echo(shown(f"{file}: {finding.detector} ({sure}): {finding.summary}{evidence}, {where}"))
    for fault in inspected.faults:
        click.echo(shown(f"{file}: {fault.inspector}: {fault.kind}: {_where(fault.detail)}"), err=True)


def _tell_json(file: str, inspected: Inspected) -> None:
    for finding in inspected.findings:
        told = msgspec.to_builtins(msgspec.structs.replace(finding, clear=NOTHING_CLEAR))
        del told["clear"]
        _print_json({"kind": "finding", "file": file, **told, "location": _where(finding.location)})
    for fault in inspected.faults:
        told = {"inspector": fault.inspector, "what": fault.kind, "detail": _where(fault.detail)}
        _print_json({"kind": "fault", "file": file, **told})


def _where(text: str) -> str:
    """A file is no request's body."""
    return text.replace("request.body", "file")


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
