"""What a policy's file says under `[quarantine]`. Who only decides by a policy does not load this."""

from __future__ import annotations

from mitmsec.core.quarantine import PEOPLE_MAX, PEOPLE_MIN, Malformed, Recipient, parse_recipient
from mitmsec.core.toml_table import Table

KEY = "recipients"


def read_recipients(table: Table) -> tuple[Recipient, ...]:
    """`recipients`: none, or two and more people, each with a key of their own."""
    found: list[Recipient] = []
    said = table.texts(KEY, may_be_empty=True)
    for place, text in said:
        try:
            one = parse_recipient(text)
        except Malformed as error:
            table.note(str(error), KEY, place)
            continue
        if any(one.name == other.name or one.public == other.public for other in found):
            table.note(f"{one.name}: two people with two keys are wanted, and this name or key is there", KEY, place)
        found.append(one)
    if said and not PEOPLE_MIN <= len(said) <= PEOPLE_MAX:
        table.note(f"{PEOPLE_MIN} to {PEOPLE_MAX} people are wanted: any two of them can open it together", KEY)
    table.close()
    return tuple(found)
