"""What a test does to the whole machine, and so to those beside it: it runs while none runs that this would disturb.

    concerned(what) ─► turnstile ─► shared lock      those that it would disturb
    alone(what) ─────► turnstile ═► exclusive lock   who waits for it holds the turnstile, so nobody new comes before

EVERYTHING is selected by somebody's policy: so are the programs of all sandboxes. Programs of dead diverters are SWEPT
wherever they are, whoever's they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

EVERYTHING, SWEPT = "everything", "swept"


@contextlib.contextmanager
def _locked(what: str, how: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir(), f"mitmsec-tests-{os.getuid()}-{what}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def concerned(what: str) -> Iterator[None]:
    """Nobody is `alone` with it until the context is left."""
    with contextlib.ExitStack() as held:
        with _locked(f"{what}-turnstile", fcntl.LOCK_EX):
            held.enter_context(_locked(what, fcntl.LOCK_SH))
        yield


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """No test that is `concerned` runs until the context is left."""
    with _locked(f"{what}-turnstile", fcntl.LOCK_EX), _locked(what, fcntl.LOCK_EX):
        yield
