"""`mitmsec ca seal` and `ca unseal`: how the issuing key lies on the disk."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mitmsec.service import ca_work, sealing
from mitmsec.service.ca_orders import doing, existing_ca, who
from mitmsec.service.called import program, with_state
from mitmsec.service.options import EXIT_NOT_SO, debug_option, fail, need_root, state_option
from mitmsec.service.state import State
from mitmsec_certs.ca_facts import CaFacts


@click.command()
@state_option
@debug_option
def seal(state_folder: Path) -> None:
    """Encrypt the issuing key with a key of this machine.

    The secret is a credential of systemd, bound to this machine and to its TPM2 where there is one. The signer gets it
    at each start. The files are then worth nothing in a backup or on another machine. Of a key in a token, its PIN.
    """
    need_root("ca seal")
    state = State(state_folder)
    found = existing_ca(state)
    what = _what(found)
    if found.is_sealed:
        fail(f"{what} is sealed already", "`mitmsec ca unseal` has it in clear again", EXIT_NOT_SO)
    doing(state, lambda: ca_work.seal(state, who(), int(time.time())))
    click.echo(f"mitmsec: {what} is sealed", err=True)
    rotate = f"{program()} ca rotate{with_state(state)}"
    anew = (
        "change it in the token, and tell it with `ca pin`" if found.token else f"`{rotate}` makes one that never was"
    )
    click.echo(f"  the disk may still remember it in clear: {anew}", err=True)


@click.command()
@state_option
@debug_option
def unseal(state_folder: Path) -> None:
    """Keep the issuing key in clear again.

    In a file that only the signer's user can read, as without `ca seal`.
    """
    need_root("ca unseal")
    state = State(state_folder)
    what = _what(existing_ca(state))
    if not sealing.is_sealed(state):
        fail(f"{what} is not sealed", "", EXIT_NOT_SO)
    doing(state, lambda: ca_work.unseal(state, who(), int(time.time())))
    click.echo(f"mitmsec: {what} is in clear again, and the signer's alone", err=True)


def _what(found: CaFacts) -> str:
    """A key in a token is safe there; what lies here is its PIN."""
    return "the PIN of the issuing key's token" if found.token else "the issuing key"
