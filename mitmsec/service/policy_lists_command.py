"""`mitmsec policy lists`: the shipped lists that a rule's `category` can name."""

from __future__ import annotations

import click
import msgspec

from mitmsec import lists
from mitmsec.core.list_text import read_names
from mitmsec.service.options import debug_option, json_option

SHIPPED = lists.shipped()


@click.command("lists")
@click.argument("name", metavar="[NAME]", required=False, type=click.Choice(list(SHIPPED)))
@json_option
@debug_option
def show_lists(name: str | None, as_json: bool) -> None:
    """Show the lists that `category` can name, or all of NAME.

    Each comes with what it is for, its provenance and its date.
    """
    if name is not None and not as_json:
        click.echo(SHIPPED[name](), nl=False)
        return
    for one in SHIPPED if name is None else (name,):
        text = SHIPPED[one]()
        names = read_names(text).text.split("\n")
        purpose = lists.head(text).partition("\n\n")[0]
        if as_json:
            facts = {"name": one, "names": names if name else len(names), "head": lists.head(text)}
            click.echo(msgspec.json.encode(facts))
        else:
            click.echo(f"{one} ({len(names)} names): {' '.join(purpose.split())}")
