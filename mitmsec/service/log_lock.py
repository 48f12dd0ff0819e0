"""One recorder a log."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

ALONE_S = 15.0  # for a dead supervisor's recorder to end


async def alone(folder: Path) -> None:
    """Hold the log's lock until this process ends: a killed supervisor's recorder may still be writing what it has."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until_s = time.monotonic() + ALONE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise SystemExit("mitmsec recorder: another recorder is still writing this log") from None
            await asyncio.sleep(0.05)
