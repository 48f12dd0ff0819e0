"""Which events: the filters that `audit list` and `audit export` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind, Outcome
from mitmsec.core.model import Action, Severity
from mitmsec.service.log_reading import instant_option

ENUMS = {"kind": Kind, "action": Action, "outcome": Outcome, "severity": Severity}
KINDS_HELP = f"Only events of this kind: {', '.join(Kind)}."
OUTCOMES_HELP = f"How the connection ended, or that a finding stopped the request: {', '.join(Outcome)}."


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Nothing is no criterion: a variable that is empty in a script must not show everything."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; leave the option out to see all")
    return value


OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--kind", type=click.Choice([kind.value for kind in Kind]), metavar="KIND", help=KINDS_HELP),
    click.option(
        "--app",
        callback=_words,
        metavar="TEXT|GLOB",
        help="Part of the executable's path, or a glob over all of it; whatever the case.",
    ),
    click.option(
        "--host", callback=_words, metavar="NAME|GLOB", help="A host and what is below it, an address, or a glob."
    ),
    click.option(
        "--action", type=click.Choice([action.value for action in Action]), help="What was done to the connection."
    ),
    click.option(
        "--rule", callback=_words, metavar="NAME|GLOB", help="Connections that this rule of the policy decided."
    ),
    click.option("--outcome", type=click.Choice([end.value for end in Outcome]), metavar="OUTCOME", help=OUTCOMES_HELP),
    click.option(
        "--session", callback=_words, metavar="ID", help="One run, by the `session` that stands in each of its events."
    ),
    click.option("--user", callback=_words, metavar="NAME", help="Of a program that ran as this user."),
    click.option("--detector", callback=_words, metavar="NAME", help="Findings of this inspector."),
    click.option(
        "--severity", type=click.Choice([one.value for one in Severity]), help="Findings that matter so much."
    ),
    instant_option("--since", "RFC 3339, or a span before now: 10m, 2h, 3d."),
    instant_option("--until", "As --since."),
    click.option(
        "--text",
        callback=_words,
        metavar="TEXT",
        help="In a value, from the beginning of a word on; whatever the case.",
    ),
)


def filter_options[Command: Callable[..., Any]](command: Command) -> Command:
    """All of them, in this order in the help; `filter_of` takes what they come to."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def filter_of(criteria: Mapping[str, Any], limit: int | None) -> Filter:
    """What `criteria`, the values of these options by their names, ask for."""
    parsed = {key: of(value) for key, of in ENUMS.items() if (value := criteria[key])}
    return Filter(**{**criteria, **parsed}, limit=limit)
