"""What the commands that change the CA share: their options, who orders it, and how it ends when something is wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mitmsec.service import ca_work
from mitmsec.service.ca_work import RootFileExists
from mitmsec.service.called import program, with_state
from mitmsec.service.joining import made
from mitmsec.service.options import EXIT_FAULT, EXIT_NOT_SO, EXIT_PRIVILEGE, EXIT_USAGE, fail
from mitmsec.service.refusals import FULL, CannotRun
from mitmsec.service.seal_keeper import SealFailed
from mitmsec.service.state import State
from mitmsec.service.terminal import shown
from mitmsec_certs.ca_facts import CaFacts, CertificateFacts, facts
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.ceremony import CeremonyFailed, keep_undumped, passphrase_flaw
from mitmsec_certs.constraints import BadConstraint, Constraints, written
from mitmsec_redirect.owner import user_name

_EVERY = {"0.0.0.0/0": "every IPv4 address", "::/0": "every IPv6 address"}


def limit_options[Command: Callable[..., Any]](command: Command) -> Command:
    """`--permit` and `--exclude`."""
    exclude = click.option(
        "--exclude", multiple=True, metavar="NAME", help="A host name and all below it, or a network, never."
    )
    permit = click.option(
        "--permit",
        multiple=True,
        metavar="NAME",
        help="A host name and all below it, or a network, that the CA may speak for; then no other. Repeatable.",
    )
    return permit(exclude(command))


def limit_of(permit: tuple[str, ...], exclude: tuple[str, ...]) -> Constraints:
    """What these options say, or the end of the command."""
    try:
        return written(permit, exclude)
    except BadConstraint as error:
        flaws = "\n  ".join(error.flaws)
        fail(f"--permit, --exclude: {flaws}", "", EXIT_USAGE)


def limits_in_words(one: CertificateFacts) -> str:
    """For what a CA may speak."""
    words = [_EVERY.get(each, each) for each in one.permitted]
    permitted = ", ".join(words) if words else "every name"
    return f"{permitted}, but not for {', '.join(one.excluded)}" if one.excluded else permitted


def is_said(option: str) -> bool:
    """Whether the command line has it, and no default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def require_good(word: str) -> None:
    """End the command for a new passphrase that cannot guard a root."""
    if (flaw := passphrase_flaw(word)) is not None:
        fail(flaw, "whoever finds the file tries short ones first", EXIT_USAGE)


def require_free(file: Path, option: str = "--root-file") -> None:
    """End the command where what it writes would overwrite another file, or has no folder to lie in."""
    if os.path.lexists(file):
        _exists(file, option)
    if not file.parent.is_dir():
        fail(f"{option}: there is no folder {shown(file.parent)}", "make it first, or name another file", EXIT_USAGE)


def found_ca(state: State) -> CaFacts | None:
    """The CA that there is, or the end of the command where it is damaged."""
    try:
        return facts(state.ca, int(time.time()))
    except KeystoreRefused as error:
        fail(str(error), "", EXIT_NOT_SO)


def existing_ca(state: State) -> CaFacts:
    """The CA that there is, or the end of the command."""
    found = found_ca(state)
    if found is None:
        fail("there is no CA yet", f"`{program()} ca init{with_state(state)}` makes one", EXIT_NOT_SO)
    return found


def doing(state: State, work: Callable[[], object]) -> None:
    """Do `work` on the CA of `state`, and have the supervisor take it up, or end the command with what went wrong."""
    try:
        made(state)
        if os.geteuid() == 0:
            keep_undumped()
        with ca_work.alone(state):
            waited = _waiting(state)
            work()
            _tell_forgotten(state, waited)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    except RootFileExists as error:
        _exists(error, "--root-file")
    except CeremonyFailed as error:
        fail(str(error), "the CA is as it was", EXIT_NOT_SO)
    except SealFailed as error:
        fail(str(error), "the CA is as it was; without `ca seal` its key is in a file of the signer's", EXIT_PRIVILEGE)
    except OSError as error:
        _unchanged(error, state)
    _announced(state)


def _unchanged(error: OSError, state: State) -> NoReturn:
    what = f"the CA could not be changed: {error.strerror or error}"
    what += f": {error.filename}" if error.filename else ""
    if error.errno in (*FULL, errno.EROFS):
        fail(what, "make room, or name another place for what is written; then once more", EXIT_PRIVILEGE)
    fail(what, f"`{program()} ca show{with_state(state)}` shows it", EXIT_FAULT)


def _announced(state: State) -> None:
    try:
        ca_work.announce(state)
    except CannotRun as error:
        done = f"what was ordered is done, and `{program()} ca show{with_state(state)}` shows it"
        fail(f"{error.error}\n  {done}; the next start records it", error.remedy, error.status)


def _waiting(state: State) -> CertificateFacts | None:
    """The root of the CA that waits to take over."""
    with contextlib.suppress(KeystoreRefused):
        found = facts(state.ca, int(time.time()))
        return found.next.root if found is not None and found.next is not None else None
    return None


def _tell_forgotten(state: State, waited: CertificateFacts | None) -> None:
    """What was trusted here and there already, perhaps, does not go without a word."""
    if waited is None:
        return
    found = facts(state.ca, int(time.time()))
    roots = [] if found is None else [found.root, *([found.next.root] if found.next is not None else [])]
    if waited not in roots:
        click.echo(f"mitmsec: {waited.subject} waits no more: it will not take over", err=True)
        click.echo(f"  if trust stores have it: {program()} ca untrust{with_state(state)}", err=True)


def tell_root_file(root_file: Path) -> None:
    """Where the root's key is, on stdout, and what to do with it."""
    click.echo(f"the root's key is in {root_file}, encrypted")
    click.echo("mitmsec: take that file off this machine, and keep the passphrase elsewhere", err=True)


def who() -> str:
    """Whose order it is, for the record: who called sudo, else who calls."""
    caller = os.environ.get("SUDO_UID", "")
    return user_name(int(caller) if caller.isdigit() else os.getuid())


def _exists(path: object, option: str) -> NoReturn:
    fail(f"{option}: {path} exists already", "name another file; none is overwritten", EXIT_USAGE)
