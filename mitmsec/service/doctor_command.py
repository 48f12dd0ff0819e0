"""`mitmsec doctor`: what works on this machine, and why not. A cause is told once; the last line says what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.service.called import program
from mitmsec.service.options import EXIT_PRIVILEGE, debug_option, json_option, state_option
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell

if TYPE_CHECKING:
    from mitmsec_redirect.probe import Check

PRIVILEGE = "privilege"  # the check without which the others cannot be told
BACKEND = "backend"  # the check that says which backend is taken


@click.command()
@json_option
@state_option
@debug_option
def doctor(*, as_json: bool, state_folder: Path) -> None:
    """Say what works on this machine, and what to do.

    Last, the token that the issuing key is in, and the trust stores that `ca trust` has changed. As JSON, `ok` is null
    where only root can find out. Exit status 3 if `mitmsec run` cannot work here.
    """
    from mitmsec.service.token_checks import token_checks
    from mitmsec.service.trust_checks import trust_checks
    from mitmsec_redirect.probe import checks

    state = State(state_folder)
    found = [*checks(), *token_checks(state), *trust_checks(state)]
    if as_json:
        for check in found:
            told = msgspec.to_builtins(check)
            click.echo(msgspec.json.encode(told | {"ok": None} if _is_unknown(check, found) else told))
    else:
        tell(console(), _table(found), Text("\n" + _closing(found), style="bold"))
    if _missing(found):
        sys.exit(EXIT_PRIVILEGE)


def _taken(found: Sequence[Check]) -> str:
    """The backend that a run takes; empty: none, or nobody said."""
    return next((check.backend for check in found if check.name == BACKEND), "")


def _missing(found: Sequence[Check]) -> list[Check]:
    """What keeps a run from working: what only another backend than the one that is taken would need does not."""
    return [check for check in found if not check.ok and not check.optional and _matters(check, found)]


def _matters(check: Check, found: Sequence[Check]) -> bool:
    """To the backend that is taken; where none is, everything does."""
    taken = _taken(found)
    return not taken or check.backend in ("", taken)


def _lacks_privilege(found: Sequence[Check]) -> bool:
    return any(check.name == PRIVILEGE and not check.ok for check in found)


def _is_unknown(check: Check, found: Sequence[Check]) -> bool:
    """Only root can find out."""
    return not check.ok and check.name != PRIVILEGE and _lacks_privilege(found)


def _table(found: Sequence[Check]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    told: dict[tuple[str, str], str] = {}
    unknowable = _lacks_privilege(found)
    for check in found:
        cause = (check.detail, check.remedy)
        lacks = Text("less", "yellow") if check.optional else Text("missing", "red")
        if check.ok:
            table.add_row(Text("works", "green"), check.name, Text(shown(check.detail)))
        elif _is_unknown(check, found):
            table.add_row(Text("unknown", "yellow"), check.name, Text("only root can find out", "dim"))
        elif not _matters(check, found):
            table.add_row(Text("missing", "yellow"), check.name, Text(f"{shown(check.detail)}; not needed here", "dim"))
        elif cause in told:
            table.add_row(lacks, check.name, Text(f"for the same reason as {told[cause]}", "dim"))
        else:
            told[cause] = check.name
            table.add_row(lacks, check.name, Text(shown(check.detail)))
            if check.remedy and not unknowable:
                table.add_row("", "", Text(check.remedy, "bold"))
    return table


def _closing(found: Sequence[Check]) -> str:
    if _lacks_privilege(found):
        return f"mitmsec run needs root. Look again with: sudo {program()} doctor"
    missing = _missing(found)
    if not missing:
        works = "Everything works" if all(check.ok for check in found) else f"mitmsec run works, by {_taken(found)}"
        return f"{works}. Next: {program()} run -- CMD"
    causes = len({(check.detail, check.remedy) for check in missing if check.name != BACKEND})
    first = missing[0].remedy or f"mend {missing[0].name}"
    return f"mitmsec run cannot work here{'' if causes == 1 else f', for {causes} reasons'}. First: {first}"
