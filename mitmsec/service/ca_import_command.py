"""`mitmsec ca import`: an issuing CA below an enterprise's root, with its key or as the answer to a request."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from mitmsec.service import ca_work
from mitmsec.service.ca_orders import doing, limits_in_words, who
from mitmsec.service.called import program, with_state
from mitmsec.service.joining import made
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, need_root, state_option
from mitmsec.service.passphrase import others_can_read, passphrase, passphrase_options
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State
from mitmsec.service.terminal import shown
from mitmsec.service.token_options import TokenOrder, token_options, token_order
from mitmsec_certs.brought_files import Brought, NeedsPassphrase, brought_apart
from mitmsec_certs.bundle import roots_as_used
from mitmsec_certs.ca_facts import facts_of
from mitmsec_certs.ceremony import CeremonyFailed, keep_undumped
from mitmsec_certs.sub_ca import SubCa, Unsuitable, sub_ca

FILE_LIMIT_BYTES = 1 << 20


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The CA's key (PEM); it may be encrypted.",
)
@click.option("--accept-broad", is_flag=True, help="Take a CA that may do more than it needs; what that is, is told.")
@click.option(
    "--wait", "waits", is_flag=True, help="Let it wait, trusted beside the CA that serves, for rotate --take-over."
)
@token_options
@passphrase_options
@state_option
@debug_option
def import_ca(
    state_folder: Path,
    files: tuple[Path, ...],
    key_file: Path | None,
    pkcs11: str | None,
    pkcs11_path: tuple[str, ...],
    pkcs11_env: tuple[str, ...],
    passphrase_file: str | None,
    passphrase_fd: int | None,
    *,
    accept_broad: bool,
    waits: bool,
) -> None:
    """Take an issuing CA below your enterprise's root.

    FILEs hold its certificate and those above it, as PEM or DER, in any order, or all of it and the key as PKCS #12. A
    root that this machine trusts need not be brought. Without a key it has to be the answer to `ca init --csr`; with
    --pkcs11 the key is in a token.
    """
    need_root("ca import")
    keep_undumped()
    state = State(state_folder)
    word = _once(lambda: passphrase("the key", passphrase_file, passphrase_fd))
    every = [_brought(file, word) for file in (*files, *((key_file,) if key_file is not None else ()))]
    keys = {one.public_key: one.key for one in every if one.key is not None}
    if len(keys) > 1:
        fail("the files hold several keys", "bring the issuing CA's alone", EXIT_USAGE)
    if keys and pkcs11 is not None:
        fail("the files hold a key, and --pkcs11 names another", "bring the certificates alone", EXIT_USAGE)
    public_key, key = next(iter(keys.items()), (None, None))
    token = token_order(pkcs11, pkcs11_path, pkcs11_env)
    found = _suitable(every, public_key or _public_key(state, token))
    accepted, brings = _accepted(found, accept_broad=accept_broad), token or key
    doing(state, lambda: ca_work.bring(state, found, brings, who(), int(time.time()), waits=waits, accepted=accepted))
    how = "this CA waits; it" if waits else "this CA signs from now on, and"
    click.echo(f"mitmsec: {how} may speak for {limits_in_words(facts_of(found.chain[0]))}", err=True)
    click.echo(f"  {program()} ca show{with_state(state)} shows it", err=True)
    if key is not None:
        click.echo("  the signer has the key now: remove the file that you brought it in", err=True)


def _once(ask: Callable[[], str]) -> Callable[[], str]:
    """Asked for when it is first needed, and then known."""
    known: list[str] = []

    def answer() -> str:
        if not known:
            known.append(ask())
        return known[0]

    return answer


def _brought(file: Path, word: Callable[[], str]) -> Brought:
    data = _content(file)
    try:
        try:
            return _private(file, brought_apart(str(file), data))
        except NeedsPassphrase:
            return brought_apart(str(file), data, word())
    except NeedsPassphrase:
        fail(f"{shown(file)} cannot be opened with this passphrase", "", EXIT_NOT_SO)
    except Unsuitable as error:
        _refused(error)


def _private(file: Path, found: Brought) -> Brought:
    """A key in clear is one only where nobody else can read it."""
    if found.key is not None and (why := others_can_read(os.stat(file))) is not None:
        what = f"{shown(file)}: {why}: others can read the key in it, so it is a secret no more"
        fail(what, "have a new key certified, and keep it in a file that is yours alone", EXIT_NOT_SO)
    return found


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            data = source.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        fail(f"{shown(file)}: {error.strerror}", "", EXIT_USAGE)
    if len(data) > FILE_LIMIT_BYTES:
        fail(f"{shown(file)} has more than {FILE_LIMIT_BYTES >> 20} MiB: no CA's files have", "", EXIT_USAGE)
    return data


def _public_key(state: State, token: TokenOrder | None) -> bytes:
    """Of the key in `token`, or of the one that a request was made for."""
    try:
        made(state)
        return ca_work.asked_key(state) if token is None else ca_work.key_in(state, token)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    except CeremonyFailed as error:
        if token is not None:
            fail(str(error), "the CA is as it was", EXIT_NOT_SO)
        ask = f"{program()} ca init --csr FILE{with_state(state)}"
        fail(str(error), f"bring the key with --key, or as PKCS #12; `{ask}` makes a request", EXIT_NOT_SO)


def _suitable(every: list[Brought], public_key: bytes) -> SubCa:
    certificates = [one for each in every for one in each.certificates]
    try:
        return sub_ca(certificates, public_key, roots_as_used({}).roots, int(time.time()))
    except Unsuitable as error:
        _refused(error)


def _accepted(found: SubCa, *, accept_broad: bool) -> str:
    """What the operator accepts, for the record."""
    if found.doubts and not accept_broad:
        doubts = "\n  ".join(found.doubts)
        fail(f"this CA could do more than it needs:\n  {doubts}", "have it limited, or say --accept-broad", EXIT_NOT_SO)
    return "; ".join(found.doubts)


def _refused(error: Unsuitable) -> NoReturn:
    reasons = "\n  ".join(error.reasons)
    fail(f"this CA cannot be used:\n  {reasons}", "", EXIT_NOT_SO)
