"""What a policy's file says under `[engine]`. Who only decides by a policy does not load this."""

from __future__ import annotations

from mitmsec.core.mitmproxy_addon import FILES_LIMIT, MitmproxyAddon, flaw_of
from mitmsec.core.policyfile import Context
from mitmsec.core.toml_table import Table

KEY = "mitmproxy_addons"


def read_addons(table: Table, context: Context) -> tuple[MitmproxyAddon, ...]:
    """`mitmproxy_addons`, in the order in which they are asked."""
    addons: dict[str, MitmproxyAddon] = {}
    files = table.texts(KEY, may_be_empty=True)
    if len(files) > FILES_LIMIT:
        table.note(f"{FILES_LIMIT} addons at most", KEY)
    for place, said in files[:FILES_LIMIT]:
        name = said.removeprefix("@")
        text = context.text_of(table, name, KEY, place)
        if text is None:
            continue
        addon = MitmproxyAddon(name=name, text=text)
        if name in addons:
            table.note(f"{name} is named twice", KEY, place)
        elif (why := flaw_of(addon)) is not None:
            table.note(why, KEY, place)
        addons[name] = addon
    table.close()
    return tuple(addons.values())
