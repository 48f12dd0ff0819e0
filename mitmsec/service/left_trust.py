"""Trust stores that still trust a root of ours: taken back by order of `clean`, and unasked once the root has ended.

Nobody accepts a root whose time is over, but it stays a root: who sets a clock back has it again. So whoever starts
next takes it out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from mitmsec.service import trust_work
from mitmsec.service.state import State
from mitmsec_certs.truststore.journal import Entry
from mitmsec_certs.truststore.keeper import NotDone

UNASKED = "mitmsec"  # who did it, where nobody has given an order


def withdraw(state: State, user: str) -> list[tuple[str, str]]:
    """Take back all that is recorded as ours. Names of stores, each with what went wrong ("": nothing)."""
    if not state.trust.is_dir():
        return []
    try:
        return _withdrawn(state, trust_work.entries(state), user)
    except (OSError, msgspec.MsgspecError) as error:
        return [(str(state.trust), str(error))]


def withdraw_ended(state: State) -> list[tuple[str, str]]:
    """As `withdraw`, those whose root's time is over."""
    try:
        ended = [entry for entry in trust_work.entries(state) if trust_work.ended(entry)]
        return _withdrawn(state, ended, UNASKED) if ended else []
    except (OSError, msgspec.MsgspecError) as error:
        return [(str(state.trust), str(error))]


def remaining(state: State) -> list[str]:
    """The stores that still trust one, as the journal says."""
    try:
        return [f"trust in {entry.store}" for entry in trust_work.entries(state)]
    except (OSError, msgspec.MsgspecError):
        return [str(state.trust)]


def _withdrawn(state: State, entries: list[Entry], user: str) -> list[tuple[str, str]]:
    results = trust_work.untrust(state, entries, user)
    return [(str(one.store), str(one) if isinstance(one, NotDone) else "") for one in results]


def main() -> None:
    """Entry point of the process that takes out what has ended: what became of it, as JSON on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(withdraw_ended(State(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
