"""`mitmsec ca trust` and `ca untrust`: the stores of this machine that trust the CA, and those that no longer do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.service import ca_work, trust_work
from mitmsec.service.ca_orders import who
from mitmsec.service.called import program, with_state
from mitmsec.service.joining import made
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, json_option, need_root, state_option
from mitmsec.service.policy_loading import load
from mitmsec.service.refusals import CannotRun
from mitmsec.service.service_commands import POLICY_FILE
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec.service.trust_work import Standing
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.truststore.found import stores as stores_here
from mitmsec_certs.truststore.keeper import Became, Done, NotDone
from mitmsec_certs.truststore.needs import needs_of
from mitmsec_certs.truststore.plan import Root, Store, StoreName
from mitmsec_certs.truststore.root import roots_of

WORDS = {
    Became.ADDED: "trusts it now",
    Became.GONE: "is no more",
    Became.IS_THERE: "trusts it already",
    Became.IS_THERE_BY_OTHERS: "trusts it already, with another store or by somebody else's hand: that is left alone",
    Became.REMOVED: "trusts it no more; others have changed the store since, and their changes stay",
    Became.RESTORED: "trusts it no more; it is what it was before, byte for byte",
}
STATES = {
    Standing.TRUSTED: "trusted",
    Standing.NOT_TRUSTED: "not trusted",
    Standing.TRUSTED_BY_OTHERS: "trusted, with another store or by somebody else's hand",
    Standing.LOST: "not trusted any more: somebody has taken it out",
    Standing.HALF_DONE: "half done: `clean` or the same order once more puts that right",
    Standing.UNKNOWN: "cannot be read",
}

stores_argument = click.argument(
    "stores", nargs=-1, type=click.Choice([name.value for name in StoreName]), metavar="[STORE]..."
)
user_option = click.option(
    "--user", "users", multiple=True, metavar="NAME", help="Of the stores in homes, only this user's. Repeatable."
)


@click.command()
@stores_argument
@user_option
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=POLICY_FILE,
    show_default=True,
    metavar="FILE",
    help="Where no STORE is named: those that the applications of this policy read.",
)
@click.option("--list", "only_list", is_flag=True, help="Change nothing; say which stores trust the CA.")
@json_option
@state_option
@debug_option
def trust(
    stores: tuple[str, ...],
    users: tuple[str, ...],
    policy_file: Path,
    state_folder: Path,
    *,
    only_list: bool,
    as_json: bool,
) -> None:
    """Have trust stores of this machine trust the CA.

    STORE is system, firefox, chromium or java; of each name there may be several. Without one, the stores that the
    policy's applications read. Each is read back afterwards, and is put back by `ca untrust` or `clean`. Programs that
    `run` starts need none of this. Exit status 1 if a store could not be changed; it is then as it was.
    """
    state = State(state_folder)
    if only_list:
        return _list(state, stores, users, as_json=as_json)
    need_root("ca trust")
    roots = _roots(state)
    if not roots:
        fail("there is no CA yet", f"`{program()} ca init{with_state(state)}` makes one", EXIT_NOT_SO)
    names = tuple(map(StoreName, stores)) or _needed(policy_file)
    wanted, missing = _chosen(names, users)
    failed = _tell_all(trust_work.trust(_made(state), wanted, roots, who()), state, as_json=as_json)
    if missing:
        first = "; a browser makes its own when it is started for the first time" if set(missing) - {"system"} else ""
        where = f", in the homes of {', '.join(users)}" if users else ""
        fail(f"there is no store here of: {', '.join(missing)}{where}", f"docs/trust.md says more{first}", EXIT_NOT_SO)
    if failed:
        fail("not every store trusts the CA", "the lines above say why; those stores are as they were", EXIT_NOT_SO)


@click.command()
@stores_argument
@user_option
@json_option
@state_option
@debug_option
def untrust(stores: tuple[str, ...], users: tuple[str, ...], state_folder: Path, *, as_json: bool) -> None:
    """Take the CA out of the trust stores that `ca trust` has put it into.

    Out of all of them, or those of the named kinds. A store that nobody else has changed since is then what it was,
    byte for byte; otherwise the CA's root alone goes. Each is read back. Exit status 1 if one still trusts it.
    """
    need_root("ca untrust")
    state = State(state_folder)
    found = [
        entry
        for entry in trust_work.entries(state)
        if (not stores or entry.store.name in stores) and _is_of(entry.store, users)
    ]
    if not found:
        click.echo("mitmsec: no store trusts the CA by our hand", err=True)
        return
    if _tell_all(trust_work.untrust(_made(state), found, who()), state, as_json=as_json):
        fail("not every store could be put right", "the lines above say why; mend it, and order it again", EXIT_NOT_SO)


# --- what is wanted ---------------------------------------------------------------------------------------------------
def _roots(state: State) -> list[Root]:
    try:
        return roots_of(state.ca)
    except KeystoreRefused as error:
        fail(str(error), "", EXIT_NOT_SO)


def _made(state: State) -> State:
    try:
        made(state)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    return state


def _needed(policy_file: Path) -> tuple[StoreName, ...]:
    """What the policy's applications read, told; or the end of the command where that cannot be said."""
    named = f"name the stores: {program()} ca trust {' '.join(StoreName)}"
    if not policy_file.exists():
        fail(f"no STORE is named, and there is no policy {policy_file}", named, EXIT_USAGE)
    loaded = load(policy_file)
    loaded.forget_keys()
    needs = needs_of(loaded.policy.applications)
    if needs.unknown:
        which = ", ".join(map(repr, needs.unknown))
        fail(f"which stores {which} of {policy_file} read cannot be told: not selected by path", named, EXIT_USAGE)
    if not needs.stores:
        fail(
            f"{policy_file} selects no application", f"programs that `run` starts need no store; or {named}", EXIT_USAGE
        )
    for name, applications in needs.stores.items():
        click.echo(f"mitmsec: {name}, for {shown(', '.join(applications))}", err=True)
    return tuple(needs.stores)


def _chosen(names: Iterable[StoreName], users: Sequence[str]) -> tuple[list[Store], list[StoreName]]:
    """The stores of these names, and the names of which there is none."""
    wanted = dict.fromkeys(names)
    found = [store for store in stores_here() if store.name in wanted and _is_of(store, users)]
    return found, [name for name in wanted if not any(store.name is name for store in found)]


def _is_of(store: Store, users: Sequence[str]) -> bool:
    return not users or not store.is_in_a_home or store.user in users


# --- what is told -----------------------------------------------------------------------------------------------------
def _tell_all(results: Iterable[Done | NotDone], state: State, *, as_json: bool) -> bool:
    """Tell what becomes of each, and have it recorded; whether one failed."""
    failed = changed = False
    for result in results:
        failed |= isinstance(result, NotDone)
        changed |= isinstance(result, Done) and result.became in trust_work.CHANGED
        _tell(result, as_json=as_json)
    if changed:
        try:
            ca_work.announce(state)
        except CannotRun as error:
            fail(error.error, error.remedy, error.status)
    return failed


def _tell(result: Done | NotDone, *, as_json: bool) -> None:
    became = "failed" if isinstance(result, NotDone) else str(result.became)
    problem = str(result) if isinstance(result, NotDone) else ""
    store = result.store
    if as_json:
        row: dict[str, object] = {"store": store.name, "place": store.place, "user": store.user}
        row |= {"became": became, "problem": problem}
        if isinstance(result, Done):
            row |= {"sha256": result.root.sha256, "others": sorted(result.others)}
        click.echo(msgspec.json.encode(row))
    elif isinstance(result, NotDone):
        click.echo(f"mitmsec: {shown(result)}", err=True)
    else:
        click.echo(f"{shown(store)} {WORDS[result.became]}")
        for entry in sorted(result.others):
            click.echo(f"mitmsec: with it, beside ours: {shown(entry)}, which somebody had left undone", err=True)


def _list(state: State, names: Sequence[str], users: Sequence[str], *, as_json: bool) -> None:
    found, _ = _chosen(map(StoreName, names or StoreName), users)
    rows = list(trust_work.listed(state, found, _roots(state)))
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("store", "user", "state", "until", "root", "place"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row.store, row.user, STATES[row.state], row.not_after[:10], row.sha256[:16], row.place)
        table.add_row(*(Text(shown(cell)) for cell in cells))
    tell(console(), table)
