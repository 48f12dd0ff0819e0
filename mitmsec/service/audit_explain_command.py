"""`mitmsec audit explain`: a recorded decision, made once more by the policy that was in force then."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
from rich.console import RenderableType
from rich.text import Text

from mitmsec.audit.decided_again import Again, again
from mitmsec.audit.envelope import Fields
from mitmsec.audit.past_flows import NoFlow, PastConnection, past_connection
from mitmsec.core.policy import Policy
from mitmsec.service.called import as_root
from mitmsec.service.explained import explained
from mitmsec.service.log_reading import opened_log, who_may_read
from mitmsec.service.options import EXIT_NOT_SO, EXIT_PRIVILEGE, debug_option, fail, json_option, state_option
from mitmsec.service.policy_versions import NoVersion, PolicyVersions
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell


@click.command()
@click.argument("which", metavar="ID|NUMBER")
@json_option
@state_option
@debug_option
def explain(which: str, as_json: bool, state_folder: Path) -> None:
    """Decide a recorded connection once more, and say why.

    By the policy that was in force when it began, of the facts on record: the decision, every rule that was tried, and
    whether that is what was recorded. Exit status 1 if it is not, and nothing on record says why.
    """
    state = State(state_folder)
    event = _event(state, which)
    past = _past(event, which)
    found = again(_policy(state, past), past)
    if as_json:
        _tell_as_json(found, past)
    else:
        tell(console(), *_parts(found, past, event))
    if not found.explained:
        sys.exit(EXIT_NOT_SO)


def _event(state: State, which: str) -> Fields:
    with opened_log(state.folder) as log:
        event = log.event(which)
    if event is None:
        fail(f"there is no event {which}", "`mitmsec audit list` shows what there is", EXIT_NOT_SO)
    return event


def _past(event: Fields, which: str) -> PastConnection:
    try:
        return past_connection(event)
    except NoFlow as error:
        remedy = "`mitmsec audit list --kind connection` shows what was decided"
        fail(f"event {which} tells of no decision of a policy: {error}", remedy, EXIT_NOT_SO)


def _policy(state: State, past: PastConnection) -> Policy:
    if not past.policy:
        what = "the event does not say which policy decided: an earlier version of mitmsec recorded it"
        fail(what, "`mitmsec policy replay F` shows what a policy makes of it now", EXIT_NOT_SO)
    try:
        return PolicyVersions(state.policies).read(past.policy)
    except PermissionError:
        fail(
            f"the policies kept in {state.policies} are not for you to read",
            f"{who_may_read()}; try: {as_root()}",
            EXIT_PRIVILEGE,
        )
    except NoVersion as error:
        fail(str(error), "`mitmsec policy replay F` shows what another policy makes of it", EXIT_NOT_SO)


def _tell_as_json(found: Again, past: PastConnection) -> None:
    for tried in found.story.tried:
        _print_json({"kind": "rule", **msgspec.to_builtins(tried)})
    _print_json(
        {
            "kind": "decision",
            "policy": past.policy,
            "same": found.same,
            "explained": found.explained,
            "notes": found.notes,
            "recorded": found.recorded,
            "verdict": found.verdict,
            **msgspec.to_builtins(found.story.decision),
        }
    )


def _parts(found: Again, past: PastConnection, event: Fields) -> list[RenderableType]:
    recorded = found.recorded
    return [
        Text.assemble(
            "recorded: ", (recorded.action.value, "bold"), f' by "{shown(recorded.rule)}": {shown(recorded.reason)}'
        ),
        Text.assemble("decided again: ", _agreement(found), f", under policy {past.policy}"),
        *(Text(f"note: {shown(note)}") for note in found.notes),
        "",
        *explained(found.story),
    ]


def _agreement(found: Again) -> tuple[str, str]:
    if found.same:
        return "the same", "bold green"
    what = f'{found.verdict.action} by "{shown(found.verdict.rule)}"'
    return what, "bold" if found.explained else "bold red"


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
