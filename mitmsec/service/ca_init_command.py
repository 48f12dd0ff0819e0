"""`mitmsec ca init`: a CA whose root is kept offline."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mitmsec.service import ca_work
from mitmsec.service.ca_orders import (
    doing,
    found_ca,
    is_said,
    limit_of,
    limit_options,
    require_free,
    require_good,
    tell_root_file,
    who,
)
from mitmsec.service.called import program, with_state
from mitmsec.service.options import EXIT_NOT_SO, debug_option, fail, need_root, state_option
from mitmsec.service.passphrase import passphrase, passphrase_options
from mitmsec.service.state import State
from mitmsec.service.token_options import TokenOrder, token_options, token_order
from mitmsec_certs.ca_folder import CaKind
from mitmsec_certs.constraints import Constraints

ROOT_FILE = "mitmsec-root.p12"


@click.command()
@limit_options
@click.option(
    "--root-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(ROOT_FILE),
    show_default=True,
    metavar="FILE",
    help="Where the root's key is written to, encrypted, to be taken off this machine.",
)
@click.option(
    "--csr",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Make no root: write a request for your enterprise's CA, whose answer `ca import` takes.",
)
@token_options
@passphrase_options
@state_option
@debug_option
def init(
    state_folder: Path,
    permit: tuple[str, ...],
    exclude: tuple[str, ...],
    root_file: Path,
    csr: Path | None,
    pkcs11: str | None,
    pkcs11_path: tuple[str, ...],
    pkcs11_env: tuple[str, ...],
    passphrase_file: str | None,
    passphrase_fd: int | None,
) -> None:
    """Make a CA whose root is kept offline.

    The root's key is written to a file, encrypted with a passphrase, that you take away; it is needed again once a
    year, for `ca rotate`. The issuing CA stays here: for TLS servers only, for a year at most, and only for the names
    that you permit. With --pkcs11 its key is in a token, and is made there if it is not there yet.
    """
    need_root("ca init")
    limit = limit_of(permit, exclude)
    state, target = State(state_folder), root_file.absolute()
    if csr is not None:
        if passphrase_file is not None or passphrase_fd is not None or is_said("root_file"):
            raise click.UsageError("--csr makes no root, so it takes neither --root-file nor a passphrase")
        require_free(csr.absolute(), "--csr")
        return _ask(state, limit, csr.absolute(), token_order(pkcs11, pkcs11_path, pkcs11_env))
    _refuse_existing(state)
    require_free(target)
    token = token_order(pkcs11, pkcs11_path, pkcs11_env)
    word = passphrase("the new root", passphrase_file, passphrase_fd, is_new=True)
    require_good(word)

    def make() -> None:
        _refuse_existing(state)  # once more: others may have made one while a passphrase was typed
        ca_work.make_own(state, limit, word, target, who(), int(time.time()), token=token)
        tell_root_file(target)

    doing(state, make)
    if limit.are_none:
        click.echo("mitmsec: this CA may speak for every name; --permit and --exclude limit one", err=True)
    click.echo(f"  {program()} ca show{with_state(state)} shows the CA; what is started now trusts it", err=True)


def _ask(state: State, limit: Constraints, target: Path, token: TokenOrder | None) -> None:
    """The CA that is there serves on until the answer comes."""
    doing(state, lambda: ca_work.ask(state, limit, target, who(), int(time.time()), token))
    click.echo(f"the request is in {target}; the key stays {'in the token' if token is not None else 'here'}")
    click.echo(f"  have it signed as a CA, and {program()} ca import{with_state(state)} the answer", err=True)


def _refuse_existing(state: State) -> None:
    """An automatic CA gives way; one that somebody made is not replaced by a word."""
    found = found_ca(state)
    if found is not None and found.kind != CaKind.AUTOMATIC:
        how = "ca init --csr FILE" if found.kind == CaKind.IMPORTED else "ca rotate"
        renew = f"{program()} {how}{with_state(state)}"
        purge = f"{program()} clean --purge-ca{with_state(state)}"
        fail(f"there is a CA already: {found.root.subject}", f"`{renew}` renews it, `{purge}` drops it", EXIT_NOT_SO)
