"""`mitmsec ca`: the enterprise CA, and what it has issued. What changes it stands in modules of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.review import Review
from mitmsec.service.audit_commands import SHOWN_EVENTS
from mitmsec.service.ca_import_command import import_ca
from mitmsec.service.ca_init_command import init
from mitmsec.service.ca_orders import limits_in_words
from mitmsec.service.ca_pin_command import pin
from mitmsec.service.ca_rotate_command import rotate
from mitmsec.service.ca_seal_commands import seal, unseal
from mitmsec.service.called import as_root, program, with_state
from mitmsec.service.groups import Group
from mitmsec.service.log_reading import instant_option, opened_log
from mitmsec.service.options import EXIT_NOT_SO, EXIT_PRIVILEGE, debug_option, fail, json_option, state_option
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec.service.trust_commands import trust, untrust
from mitmsec_certs.ca_facts import CaFacts, CertificateFacts, facts
from mitmsec_certs.ca_folder import CaKind, KeystoreRefused

KINDS = {
    CaKind.AUTOMATIC: "made on first use; its root's key was destroyed",
    CaKind.OWN: "made by `ca init`; its root's key is kept offline",
    CaKind.IMPORTED: "below somebody else's root",
}


@click.group(cls=Group)
def ca() -> None:
    """Make, renew and look at the CA, and at what it has issued."""


ca.add_command(init)
ca.add_command(import_ca)
ca.add_command(rotate)
ca.add_command(pin)
ca.add_command(seal)
ca.add_command(unseal)
ca.add_command(trust)
ca.add_command(untrust)


@ca.command()
@json_option
@state_option
@debug_option
def show(*, as_json: bool, state_folder: Path) -> None:
    """Show the CA: its certificates, until when they hold, and for which names it may speak.

    Exit status 1 if there is none yet.
    """
    state = State(state_folder)
    found = facts_of_state(state)
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif found is not None:
        tell(console(), *_tables(found))
    if found is None:
        again = f"{program()} ca init{with_state(state)}"
        fail("there is no CA yet", f"`{again}` makes one; without it the first `run` or `start` does", EXIT_NOT_SO)


def facts_of_state(state: State) -> CaFacts | None:
    """None: there is no CA yet. Ends the command where it cannot be read."""
    if state.ca.exists() and not os.access(state.ca, os.X_OK):
        fail(f"{state.ca} is not for you to read", f"try: {as_root()}", EXIT_PRIVILEGE)
    try:
        return facts(state.ca, int(time.time()))
    except KeystoreRefused as error:
        fail(str(error), "", EXIT_NOT_SO)


def _tables(found: CaFacts) -> Iterator[Table]:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows = [("kind", f"{found.kind}: {KINDS[found.kind]}")]
    rows += _rows("root", found.root)
    for place, between in enumerate(found.above, 1):
        rows += _rows(f"above {place}", between)
    rows += _rows("issuing", found.issuing)
    rows.append(("may speak for", limits_in_words(found.issuing)))
    rows.append(("its key", _kept(found)))
    if found.root_file:
        rows.append(("root's key", f"was written to {found.root_file}{_still_there(found.root_file)}"))
    if found.next is not None:
        rows += [("", ""), ("next", f"waits for {program()} ca rotate --take-over; commands trust its root already")]
        rows += [*_rows("next root", found.next.root), *_rows("next issuing", found.next.issuing)]
        rows.append(("may speak for", limits_in_words(found.next.issuing)))
    if found.asks:
        rows += [("", ""), ("request", f"waits for its answer, which {program()} ca import takes")]
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(shown(value)))
    yield table


def _kept(found: CaFacts) -> str:
    how = "sealed with this machine's key" if found.is_sealed else "in clear, the signer's alone"
    return f"in a token: {found.token}; its PIN is {how}" if found.token else how


def _still_there(file: str) -> str:
    """Who may not look in its folder knows nothing."""
    return ", and is still there: take it off this machine" if os.path.exists(file) else ""


def _rows(name: str, one: CertificateFacts) -> list[tuple[str, str]]:
    return [
        (name, one.subject),
        ("", f"until {one.not_after}, {_depth(one)}"),
        ("", f"sha256 {one.sha256}"),
    ]


def _depth(one: CertificateFacts) -> str:
    return "no limit to its path length" if one.path_length is None else f"path length {one.path_length}"


@ca.command()
@click.option("--host", metavar="NAME", help="Only leaves for this name and what is below it, or a glob.")
@instant_option("--since", "Only leaves issued since then: RFC 3339, or a span before now: 10m, 2h, 3d.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"The newest N. Default: {SHOWN_EVENTS}; with --json all.",
)
@json_option
@state_option
@debug_option
def issued(*, as_json: bool, state_folder: Path, limit: int | None, host: str | None, since: Any) -> None:
    """List the leaves that were issued, from the audit log.

    Serial number, name, end, and for which program's connection, under which rule. A leaf that is used again is
    no new one.
    """
    wanted = Filter(kind=Kind.CERTIFICATE, host=host, since=since, limit=limit if limit or as_json else SHOWN_EVENTS)
    with opened_log(state_folder) as log:
        rows = (_issued(log, event) for event in log.events(wanted))
        if as_json:
            for row in rows:
                click.echo(msgspec.json.encode(row))
            return
        listed = list(rows)
    if not listed:
        click.echo("no leaf was issued", err=True)
        return
    tell(console(), _listed(listed))


def _issued(log: Review, event: dict[str, Any]) -> dict[str, Any]:
    """The event, with the program and the rule of its connection once that is on record."""
    flow = event.get("connection")
    connections = [one for one in log.of_connection(flow) if one.get("kind") == Kind.CONNECTION] if flow else []
    told = connections[-1] if connections else {}
    keys = ("seq", "time", "serial", "names", "not_after", "flaw", "connection", "session")
    row = {key: event[key] for key in keys if key in event}
    return {**row, "process": told.get("process"), "rule": told.get("rule")}


def _listed(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("time", "name", "until", "app", "rule", "serial"):
        table.add_column(column, overflow="fold")
    for row in rows:
        process = row["process"] or {}
        flaw = f" ({row['flaw']})" if row.get("flaw") else ""
        cells = (
            row["time"][:19],
            f"{', '.join(row['names'])}{flaw}",
            row["not_after"],
            process.get("name") or "unknown",
            row["rule"] or "",
            row["serial"],
        )
        table.add_row(*(Text(shown(cell)) for cell in cells))
    return table
