"""`mitmsec audit account`: who may sign in at the console, and as what. Each change is on record before it is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.audit.console.duty import Duty, is_name
from mitmsec.core.messages import Role
from mitmsec.service import control
from mitmsec.service.accounts import account_of
from mitmsec.service.groups import Group
from mitmsec.service.joining import made
from mitmsec.service.options import (
    EXIT_NOT_SO,
    EXIT_PRIVILEGE,
    EXIT_USAGE,
    debug_option,
    fail,
    json_option,
    need_root,
    state_option,
)
from mitmsec.service.refusals import CannotRun
from mitmsec.service.review_record import calling_user, recorded
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell

if TYPE_CHECKING:
    from mitmsec.audit.console.desk_store import Account, DeskStore

role_option = click.option(
    "--role",
    "duty",
    required=True,
    type=click.Choice([duty.value for duty in Duty]),
    help="What it may do: docs/console.md.",
)
password_option = click.option(
    "--password-stdin", is_flag=True, help="Take the password from the first line of stdin; it need not be changed."
)


@click.group(cls=Group)
def account() -> None:
    """Say who may sign in at the console, and as what."""


@account.command()
@click.argument("name")
@role_option
@password_option
@state_option
@debug_option
def add(name: str, *, duty: str, password_stdin: bool, state_folder: Path) -> None:
    """Add the account NAME.

    Prints a one-time password, which must be changed at the first sign-in.
    """
    state = _begun(name, state_folder)
    with _desk(state) as desk:
        if desk.account(name) is not None:
            fail(f"there is an account {name}", "`audit account role` gives it another role", EXIT_NOT_SO)
    password, hashed = _password(name, from_stdin=password_stdin)
    _record(state, "account_added", name, duty)
    with _desk(state) as desk:
        desk.add_account(name, Duty(duty), hashed, datetime.now(UTC))
        if password_stdin:
            desk.change_password(name, hashed, must_change=False)
    _tell(name, "" if password_stdin else password)


@account.command(name="list")
@json_option
@state_option
@debug_option
def list_accounts(*, as_json: bool, state_folder: Path) -> None:
    """List the accounts."""
    need_root("listing accounts")
    found = accounts_of(State(state_folder))
    if as_json:
        for one in found:
            about = {"name": one.name, "role": one.duty, "created": one.created, "one_time": one.must_change}
            click.echo(msgspec.json.encode(about))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", "role", "since", "password"):
        table.add_column(heading)
    for one in found:
        cells = (one.name, one.duty, one.created, "one-time" if one.must_change else "own")
        table.add_row(*(Text(shown(cell)) for cell in cells))
    tell(console(), table if found else Text("there is no account"))


@account.command()
@click.argument("name")
@state_option
@debug_option
def remove(name: str, state_folder: Path) -> None:
    """Remove the account NAME, and end its sessions. What it did stays on record."""
    state = _known(name, state_folder)
    _record(state, "account_removed", name)
    with _desk(state) as desk:
        desk.remove_account(name)


@account.command()
@click.argument("name")
@role_option
@state_option
@debug_option
def role(name: str, *, duty: str, state_folder: Path) -> None:
    """Give the account NAME another role; its sessions end."""
    state = _known(name, state_folder)
    _record(state, "role_changed", name, duty)
    with _desk(state) as desk:
        desk.change_duty(name, Duty(duty))


@account.command()
@click.argument("name")
@password_option
@state_option
@debug_option
def password(name: str, *, password_stdin: bool, state_folder: Path) -> None:
    """Give the account NAME a new one-time password; its sessions end."""
    state = _known(name, state_folder)
    made_password, hashed = _password(name, from_stdin=password_stdin)
    _record(state, "password_reset", name)
    with _desk(state) as desk:
        desk.change_password(name, hashed, must_change=not password_stdin)
    _tell(name, "" if password_stdin else made_password)


# -- what they share ---------------------------------------------------------------------------------------------------
def accounts_of(state: State) -> list[Account]:
    """None where no console ever was."""
    if not (state.review / "desk.db").exists():
        return []
    with _desk(state) as desk:
        return desk.accounts()


def _begun(name: str, folder: Path) -> State:
    """The state, its folders made."""
    need_root("changing accounts")
    if not name or not is_name(name):
        fail("this is no name of an account", "letters, digits, dots and dashes, up to 64 of them", EXIT_USAGE)
    state = State(folder)
    try:
        made(state)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    return state


def _known(name: str, folder: Path) -> State:
    state = _begun(name, folder)
    if name not in {one.name for one in accounts_of(state)}:
        fail(f"there is no account {name}", "`audit account list` shows which there are", EXIT_NOT_SO)
    return state


def _password(name: str, *, from_stdin: bool) -> tuple[str, str]:
    """It and its hash."""
    from mitmsec.audit.console import passwords

    chosen = sys.stdin.readline().rstrip("\r\n") if from_stdin else passwords.one_time()
    if why := passwords.flaw(chosen, name):
        fail(why, "choose another password", EXIT_USAGE)
    return chosen, passwords.hashed(chosen)


def _tell(name: str, one_time: str) -> None:
    if one_time:
        click.echo(one_time)
        click.echo(
            f"mitmsec: that is the one-time password of {name}; it must be changed at the first sign-in", err=True
        )


@contextmanager
def _desk(state: State) -> Iterator[DeskStore]:
    """The reviewers' tables, opened as the console's user: what lies in its folder cannot lead root anywhere."""
    from mitmsec.audit.console.desk_store import DeskStore, DeskUnusable

    account = account_of(Role.CONSOLE)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        desk = DeskStore(state.review)
        try:
            yield desk
        finally:
            desk.close()
    except (DeskUnusable, OSError) as error:
        fail(
            f"{state.review} cannot be used: {error}",
            "whoever runs the console must be able to pass the folders above it",
            EXIT_PRIVILEGE,
        )
    finally:
        os.seteuid(0)
        os.setegid(0)


def _record(state: State, operation: str, name: str, detail: str = "") -> None:
    """Or the end of the command."""
    order = control.Review(operation=operation, item=name, user=calling_user(), detail=detail)
    recorded(state, order, "nothing was changed")
