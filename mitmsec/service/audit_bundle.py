"""`mitmsec audit verify --bundle`: whether what somebody exported is what was recorded, without the log."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

import click
import msgspec
from rich.text import Text

from mitmsec.audit.bundle import Flawed, Sound, check
from mitmsec.audit.bundle_file import NoBundle, read
from mitmsec.audit.checkpoint import LogKey
from mitmsec.service.options import EXIT_NOT_SO, fail
from mitmsec.service.terminal import console, shown, tell

NO_KEY = "Nobody's signature was checked: give the key that was kept, with --key. A key in the bundle proves nothing."
NO_CHECKPOINT = (
    "Without a checkpoint that was kept elsewhere this cannot exclude that the log was written anew, and signed, by"
    " someone who is root there: give one with --checkpoint."
)
LEFT_OUT = "That no other event meets the same filters, a bundle cannot show."


def verify_bundle(path: Path, keys: tuple[LogKey, ...], kept: str | None, *, as_json: bool) -> None:
    """Ends with status 1 where it is not."""
    from mitmsec.seal import checks

    try:
        found = check(read(path), checks, keys, kept)
    except OSError as error:
        fail(f"--bundle: {path}: {error.strerror}", "name a file that you may read", EXIT_NOT_SO)
    except NoBundle as error:
        found = Flawed(why=str(error))
    if as_json:
        about = {"verified": isinstance(found, Sound), **msgspec.to_builtins(found)}
        click.echo(msgspec.json.encode(about))
        sys.exit(0 if isinstance(found, Sound) else EXIT_NOT_SO)
    match found:
        case Flawed(why=why, line=line):
            where = f", line {line} of events.jsonl" if line is not None else ""
            fail(f"the bundle does NOT prove what it claims{where}: {why}", "ask for another export", EXIT_NOT_SO)
        case Sound():
            _tell(found)


def _tell(found: Sound) -> None:
    out = console()
    what = f": {found.events} events, each in the log {shown(found.origin)} of {found.size} events"
    tell(out, Text.assemble(("sound", "bold green"), what))
    if found.signed:
        tell(out, Text("Its checkpoint was signed by the key that you gave."))
    if found.kept is not None:
        tell(out, Text(f"That log begins with the {found.kept} events that were kept."))
    limits = [*([] if found.signed else [NO_KEY]), *([] if found.kept is not None else [NO_CHECKPOINT]), LEFT_OUT]
    tell(out, Text(fill(" ".join(limits), out.width), style="dim"))
