"""How mitmsec was called, for command lines that a person can copy. Also for processes that have no command line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from mitmsec.service.state import DEFAULT, State


def as_root() -> str:
    """This command line once more, as root, to be copied into a shell: sudo clears the environment."""
    state = f"MITMSEC_STATE={shlex.quote(os.environ['MITMSEC_STATE'])} " if "MITMSEC_STATE" in os.environ else ""
    return f"sudo {state}{program()} {shlex.join(sys.argv[1:])}"


def program() -> str:
    """How mitmsec was called, for a line that a person can copy into a shell."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m mitmsec"
    if not called.exists():
        return "mitmsec"
    here = os.path.relpath(called)
    return shlex.quote(str(called) if here.startswith("..") else here)


def with_state(state: State) -> str:
    """` --state DIR` where that is not the usual one, for a command line that a person can copy."""
    return "" if state.folder == DEFAULT else f" --state {shlex.quote(str(state.folder))}"
