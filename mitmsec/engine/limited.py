"""A call of code that may not end: an inspector's, an addon's. Time is the process's own, not the clock's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from mitmsec.core.inspecting import TooLong

CALL_LIMIT_S = 1.0


def limited[T](call: Callable[[], T]) -> T:
    """Call, interrupted with TooLong once this process has computed for CALL_LIMIT_S. Unlimited off the main thread."""
    if not _limits():
        return call()
    signal.setitimer(signal.ITIMER_VIRTUAL, CALL_LIMIT_S, CALL_LIMIT_S)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limits() -> bool:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGVTALRM) is not _interrupt:
        signal.signal(signal.SIGVTALRM, _interrupt)
    return True


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise TooLong(f"interrupted after {CALL_LIMIT_S} s")
