"""`mitmsec ca pin`: the PIN of the token that holds the issuing key is another."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mitmsec.service import ca_work
from mitmsec.service.ca_orders import doing, existing_ca, who
from mitmsec.service.options import EXIT_NOT_SO, debug_option, fail, need_root, state_option
from mitmsec.service.state import State
from mitmsec.service.token_options import pin_of_token, pin_source_option


@click.command()
@pin_source_option
@state_option
@debug_option
def pin(state_folder: Path, pin_source: str | None) -> None:
    """Tell the PIN of the token that holds the issuing key.

    After it was changed there, or after the token has refused the one that is kept here, which is then not tried again.
    """
    need_root("ca pin")
    state = State(state_folder)
    if not existing_ca(state).token:
        fail("the issuing key is in no token, so it has no PIN", "", EXIT_NOT_SO)
    word = pin_of_token(pin_source, "the token")
    doing(state, lambda: ca_work.change_pin(state, word, who(), int(time.time())))
    click.echo("mitmsec: the token takes the PIN, and the signer has it", err=True)
