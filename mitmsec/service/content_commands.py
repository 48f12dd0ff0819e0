"""`mitmsec audit erase`, `unmask`, `approve`, `requests`: about the evidence that is kept beside the log.

unmask EVENT --reason ──► a request ── approve REQUEST, by another account ──► unmask EVENT shows it, once
"""

from __future__ import annotations

import base64
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.channel import Channel, ChannelBroken
from mitmsec.core.content_orders import (
    ApproveUnmasking,
    ContentErased,
    ContentOrder,
    ContentRefused,
    EraseContent,
    RequestUnmasking,
    Unmask,
    Unmasked,
    UnmaskingApproved,
    UnmaskingRequested,
    Unmaskings,
    UnmaskingsQuestion,
)
from mitmsec.core.unmasking import OPEN_S, Person, Unmasking
from mitmsec.service import control
from mitmsec.service.called import as_root, program, with_state
from mitmsec.service.joining import join
from mitmsec.service.log_reading import instant_option, opened_log, who_may_read
from mitmsec.service.options import (
    EXIT_FAULT,
    EXIT_NOT_SO,
    EXIT_PRIVILEGE,
    debug_option,
    fail,
    json_option,
    need_root,
    state_option,
)
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec_redirect.owner import user_name

ANSWERED_S = 60.0
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; it stands in the log.")


@click.command()
@click.option("--user", default="", metavar="USER", help="What was found in connections of this user's programs.")
@click.option("--connection", default="", metavar="ID", help="What was found on this connection.")
@click.option("--event", default="", metavar="ID|NUMBER", help="What was found by this finding.")
@instant_option("--before", "What was kept before: RFC 3339, or a span before now: 12h, 30d.")
@reason_option
@json_option
@state_option
@debug_option
def erase(
    *,
    user: str,
    connection: str,
    event: str,
    before: datetime | None,
    reason: str,
    as_json: bool,
    state_folder: Path,
) -> None:
    """Erase evidence for good, and the keys to it.

    What meets every option that is given; one is needed. It is on record before it is done, and every proof of the log
    stays valid.
    """
    if not (user or connection or event or before):
        raise click.UsageError("what is to be erased? Give --user, --connection, --event or --before")
    need_root("erasing evidence")
    state = State(state_folder)
    order = EraseContent(
        by=_caller(),
        user=user,
        connection=connection,
        event=_event_id(state, event) if event else "",
        before_s=None if before is None else int(before.timestamp()),
        reason=reason,
    )
    answer = _ordered(state, order)
    assert isinstance(answer, ContentErased)
    pieces = f"{answer.count} piece{'' if answer.count == 1 else 's'} of evidence"
    _tell(
        {"erased": answer.count},
        f"erased {pieces}; `{program()} audit verify{with_state(state)}` is as before",
        as_json,
    )


@click.command()
@click.argument("which", metavar="ID|NUMBER")
@reason_option
@json_option
@state_option
@debug_option
def unmask(which: str, *, reason: str, as_json: bool, state_folder: Path) -> None:
    """Show what a finding found, in the clear.

    Once another person has agreed (`audit approve`), to whom has asked for it, once, and within a quarter of an hour.
    Until then, --reason asks for it. It is on record before it is shown.
    """
    state = State(state_folder)
    event, by = _event_id(state, which), _caller()
    answer, clear = _shown(state, Unmask(by=by, event=event))
    if isinstance(answer, Unmasked):
        text = clear.decode("utf-8", "replace")
        told = {
            "event": event,
            "approved_by": answer.approved_by,
            "text": text,
            "base64": base64.b64encode(clear).decode(),
        }
        return _tell(told, shown(text), as_json)
    assert isinstance(answer, ContentRefused)
    if not reason or answer.status != EXIT_NOT_SO:
        remedy = "ask for it with --reason TEXT" if answer.status == EXIT_NOT_SO else answer.remedy
        fail(answer.error, remedy, answer.status)
    asked = _ordered(state, RequestUnmasking(by=by, event=event, reason=reason))
    assert isinstance(asked, UnmaskingRequested)
    again = f"{program()} audit approve {asked.request}{with_state(state)}"
    said = f"request {asked.request}: within {OPEN_S // 60} minutes another person agrees by `{again}`"
    _tell({"request": asked.request, "event": event}, f"{said}, then this command shows it", as_json)


@click.command()
@click.argument("request")
@json_option
@state_option
@debug_option
def approve(request: str, *, as_json: bool, state_folder: Path) -> None:
    """Agree that another person sees what a finding found.

    REQUEST is as `audit unmask` or `audit requests` said it. Nobody agrees to a request of their own.
    """
    answer = _ordered(State(state_folder), ApproveUnmasking(by=_caller(), request=request))
    assert isinstance(answer, UnmaskingApproved)
    said = f"{answer.asked_by} may see event {answer.event} once, within {OPEN_S // 60} minutes"
    _tell({"request": request, "event": answer.event, "requested_by": answer.asked_by}, shown(said), as_json)


@click.command()
@json_option
@state_option
@debug_option
def requests(*, as_json: bool, state_folder: Path) -> None:
    """List who asked to see what, and who agreed; the newest first."""
    answer = _ordered(State(state_folder), UnmaskingsQuestion())
    assert isinstance(answer, Unmaskings)
    if as_json:
        for one in answer.requests:
            click.echo(msgspec.json.encode(one))
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("request", "asked", "by", "event", "reason", "state"):
        table.add_column(heading)
    for one in answer.requests:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.at_s))
        table.add_row(*(Text(shown(cell)) for cell in (one.id, when, str(one.by), one.event, one.reason, _state(one))))
    tell(console(), table if answer.requests else Text("nobody has asked for anything"))


def _state(one: Unmasking) -> str:
    if one.shown_s is not None:
        return f"shown, as {one.approved_by} agreed"
    is_over = time.time() - (one.approved_s or one.at_s) > OPEN_S
    agreed = "nobody has agreed" if one.approved_by is None else f"{one.approved_by} agreed"
    return f"{agreed}; over" if is_over else agreed


# -- the supervisor ----------------------------------------------------------------------------------------------------
def _caller() -> Person:
    """Of whoever is not root, the supervisor knows better."""
    caller = os.environ.get("SUDO_UID", "")
    uid = int(caller) if os.geteuid() == 0 and caller.isdigit() else os.getuid()
    return Person(name=user_name(uid), uid=uid)


def _event_id(state: State, which: str) -> str:
    with opened_log(state.folder) as log:
        event = log.event(which)
    if event is None:
        fail(f"there is no event {which}", "`mitmsec audit list --kind finding` shows what was found", EXIT_NOT_SO)
    return str(event["id"])


def _ordered(state: State, order: ContentOrder, *fds: int) -> Any:
    """The answer, or the end of the command with why not."""
    answer = _asked(state, order, *fds)
    if isinstance(answer, ContentRefused):
        fail(answer.error, answer.remedy, answer.status)
    return answer


def _shown(state: State, order: Unmask) -> tuple[Any, bytes]:
    """The answer, and what came with it: from the recorder straight to here."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        try:
            answer = _asked(state, order, writing)
        finally:
            os.close(writing)
        return answer, pipe.read()


def _asked(state: State, order: ContentOrder, *fds: int) -> Any:
    channel = _joined(state)
    try:
        received = channel.exchange(order, *fds, timeout_s=ANSWERED_S)
    except (OSError, ChannelBroken) as error:
        fail(f"the supervisor does not answer: {error}", "whether it was done, the log says", EXIT_FAULT)
    finally:
        channel.close()
    if received is None:
        fail("the supervisor has gone", "whether it was done, the log says; try again", EXIT_PRIVILEGE)
    if isinstance(received[0], control.Refused):
        fail(received[0].error, received[0].remedy, received[0].status)
    return received[0]


def _joined(state: State) -> Channel:
    """Root starts a supervisor where none runs."""
    if os.geteuid() == 0:
        try:
            return join(state, worker=False)
        except CannotRun as error:
            fail(error.error, error.remedy, error.status)
    try:
        return Channel(control.connect(state.control), control.FROM_SUPERVISOR)
    except PermissionError:
        fail("this is not for you to order", f"{who_may_read()}; try: {as_root()}", EXIT_PRIVILEGE)
    except OSError:
        _nobody()


def _nobody() -> NoReturn:
    fail("no recorder runs on this state", f"start the service, or try: {as_root()}", EXIT_PRIVILEGE)


def _tell(told: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(msgspec.json.encode(told) if as_json else text)
