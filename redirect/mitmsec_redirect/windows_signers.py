"""Signatures verified beside the event loop: one file after the other, nobody waits.

    begin(path, file) ──► queue ──► one thread, `ask` ──► Future

What is under way is bounded: where there is no room for one more, its signature stays unknown. Nothing is remembered by
file here: who owns one can put another content under the same name, size and times.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from mitmsec.core.model import Value

WAITING_LIMIT = 128

type Job = tuple[str, int, Future[Signature | None]]


class Signature(Value, frozen=True):
    """What was found out: the signer's subject, or None where nobody signed whom the system trusts."""

    subject: str | None


class Signers:
    """`ask` (path, descriptor) gives the subject, and raises OSError where it cannot."""

    def __init__(self, ask: Callable[[str, int], str | None]) -> None:
        self._ask = ask
        self._jobs: queue.Queue[Job] = queue.Queue(WAITING_LIMIT)
        self._is_started = False

    def begin(self, path: str, descriptor: int) -> Future[Signature | None]:
        """Of the file that `descriptor` (owned from now on) is. Its result is None where that cannot be found out."""
        result: Future[Signature | None] = Future()
        result.set_running_or_notify_cancel()
        try:
            self._jobs.put_nowait((path, descriptor, result))
        except queue.Full:
            os.close(descriptor)
            result.set_result(None)
            return result
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._serve, name="signers", daemon=True).start()
        return result

    def _serve(self) -> None:
        while True:
            path, descriptor, result = self._jobs.get()
            found: Signature | None = None
            try:
                with contextlib.suppress(Exception):  # whatever it is, the next one is asked about too
                    found = Signature(subject=self._ask(path, descriptor))
            finally:
                os.close(descriptor)
                result.set_result(found)
