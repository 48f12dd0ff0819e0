"""`mitmsec ca rotate`: another issuing CA, or another root beside the one that serves, and when it takes over."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mitmsec.service import ca_work
from mitmsec.service.ca_init_command import ROOT_FILE
from mitmsec.service.ca_orders import (
    doing,
    existing_ca,
    limit_of,
    limit_options,
    require_free,
    require_good,
    tell_root_file,
    who,
)
from mitmsec.service.called import program, with_state
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, need_root, state_option
from mitmsec.service.passphrase import passphrase, passphrase_options
from mitmsec.service.state import State
from mitmsec_certs.ca_facts import CaFacts
from mitmsec_certs.ca_folder import CaKind

ROOT_FILE_LIMIT_BYTES = 64 * 1024


@click.command()
@click.option("--new-root", is_flag=True, help="Make a new root too. It waits, trusted beside the old, to take over.")
@click.option("--take-over", is_flag=True, help="Let the CA that waits take the place of the one that serves.")
@limit_options
@click.option(
    "--root-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The root's file. Default: where it was written to. With --new-root, where the new one's is written to."
    f" Default: {ROOT_FILE}.",
)
@passphrase_options
@state_option
@debug_option
def rotate(
    state_folder: Path,
    permit: tuple[str, ...],
    exclude: tuple[str, ...],
    root_file: Path | None,
    passphrase_file: str | None,
    passphrase_fd: int | None,
    *,
    new_root: bool,
    take_over: bool,
) -> None:
    """Renew the issuing CA, or the root.

    With the root's file: another issuing CA under the same root, at once; nobody's trust changes. With --new-root (and
    for an automatic CA, always): another root, which waits. Commands that are started from then on trust both; put it
    into your trust stores, and let it serve with --take-over. --permit and --exclude limit it; without them the limits
    stay what they are.
    """
    need_root("ca rotate")
    if take_over and (new_root or permit or exclude or root_file):
        raise click.UsageError("--take-over takes no other option: what waits is already made")
    if (permit or exclude) and not new_root:
        raise click.UsageError("limits stand in the root: --permit and --exclude need --new-root")
    state = State(state_folder)
    found = existing_ca(state)
    if take_over:
        return _take_over(state, found)
    if new_root:
        target = (root_file or Path(ROOT_FILE)).absolute()
        limit = limit_of(permit or found.issuing.permitted, exclude or found.issuing.excluded)
        require_free(target)
        word = passphrase("the new root", passphrase_file, passphrase_fd, is_new=True)
        require_good(word)

        def make() -> None:
            ca_work.make_own(state, limit, word, target, who(), int(time.time()), waits=True)
            tell_root_file(target)

        doing(state, make)
        return _tell_waiting(state)
    _refuse_waiting(state, found)
    match found.kind:
        case CaKind.AUTOMATIC:
            doing(state, lambda: ca_work.begin_automatic(state, who(), int(time.time())))
            _tell_waiting(state)
        case CaKind.IMPORTED:
            again = f"{program()} ca import{with_state(state)}"
            fail("this CA is below somebody else's root", f"have that CA sign anew, and `{again}` it", EXIT_NOT_SO)
        case CaKind.OWN:
            sealed = _content(root_file or Path(found.root_file))
            word = passphrase("the root", passphrase_file, passphrase_fd)
            doing(state, lambda: ca_work.renew_issuing(state, sealed, word, who(), int(time.time())))
            click.echo("mitmsec: another issuing CA signs from now on, under the same root", err=True)


def _take_over(state: State, found: CaFacts) -> None:
    if found.next is None:
        fail(
            "no CA waits to take over", f"`{program()} ca rotate{with_state(state)} --new-root` makes one", EXIT_NOT_SO
        )
    doing(state, lambda: ca_work.take_over(state, who(), int(time.time())))
    click.echo(f"mitmsec: {found.next.root.subject} serves from now on", err=True)
    click.echo(
        "  the root before it stays in the bundles of new commands for a day; then take it out of stores", err=True
    )


def _refuse_waiting(state: State, found: CaFacts) -> None:
    """What was begun, and may be trusted here and there already, is not thrown away by the way."""
    if found.next is not None:
        take_over = f"{program()} ca rotate{with_state(state)} --take-over"
        fail(f"a CA waits already: {found.next.root.subject}", f"`{take_over}` lets it serve", EXIT_NOT_SO)


def _tell_waiting(state: State) -> None:
    take_over = f"{program()} ca rotate{with_state(state)} --take-over"
    click.echo("mitmsec: the next root waits; commands that are started from now on trust both", err=True)
    click.echo(f"  once your trust stores have it, and older commands have ended: {take_over}", err=True)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            return source.read(ROOT_FILE_LIMIT_BYTES)
    except OSError as error:
        remedy = "bring the root's file from where it is kept, and name it with --root-file"
        fail(f"--root-file: {file}: {error.strerror}", remedy, EXIT_USAGE)
