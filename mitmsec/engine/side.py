"""One side of a dialogue, and how a flow ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from mitmproxy.connection import Connection

from mitmsec.audit.event import FaultSeen, Outcome
from mitmsec.engine.leg import Leg
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.seams import Recorder
from mitmsec.engine.watch import Blocked


class Ended(Exception):
    """How a flow ends. `reset`: the client is to see a reset. `answer`: what it is told before an end in order."""

    def __init__(self, outcome: Outcome, error: str = "", *, reset: bool = False, answer: bytes = b"") -> None:
        super().__init__(error)
        self.outcome, self.error, self.reset, self.answer = outcome, error, reset, answer


class Side:
    """A leg, the TLS on it (None for plaintext), and what mitmproxy calls it."""

    __slots__ = ("connection", "leg", "over", "pending", "session")

    def __init__(self, leg: Leg, session: TlsSession | None, connection: Connection) -> None:
        self.leg, self.session, self.connection = leg, session, connection
        self.pending: list[bytes] = []
        self.over = False  # the peer has said that it sends nothing more

    def flush(self) -> None:
        if self.pending:
            self.leg.write(self._sealed())

    def say_goodbye(self) -> None:
        """What is pending, and close_notify with it."""
        data = self._sealed()
        if self.session is not None:
            self.session.close_notify()
            data += self.session.outgoing()
        self.leg.write(data)

    def _sealed(self) -> bytes:
        data = self.pending[0] if len(self.pending) == 1 else b"".join(self.pending)
        self.pending.clear()
        if self.session is None or not data:
            return data
        self.session.write(data)
        return self.session.outgoing()

    def forget(self) -> None:
        """Let the session's memory go now."""
        if self.session is not None:
            self.session.release()
            self.session = None
        self.pending.clear()


async def ending_of(serving: Awaitable[Ended], flow: str, recorder: Recorder) -> Ended:
    """How serving a flow ended, whatever it raises."""
    try:
        return await serving
    except Ended as reason:
        return reason
    except asyncio.CancelledError:
        return Ended(Outcome.CUT, "the worker was told to stop", reset=True)
    except Exception as error:
        return faulty(error, flow, recorder)


def ending(error: Exception, flow: str, recorder: Recorder) -> Ended:
    """How a flow ends because of `error`: what inspectors said, or something of ours."""
    if isinstance(error, Ended):
        return error
    if isinstance(error, Blocked):
        return Ended(Outcome.BLOCKED, str(error), reset=not error.answer, answer=error.answer)
    return faulty(error, flow, recorder)


def faulty(error: Exception, flow: str, recorder: Recorder) -> Ended:
    """Record an error of ours by kind and place. Not its message, which may quote what went through."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" at {at.tb_frame.f_globals.get('__name__')}:{at.tb_lineno}" if at is not None else ""
    detail = type(error).__name__ + place
    recorder.record(FaultSeen(what="engine", detail=detail, failed="closed", flow=flow))
    return Ended(Outcome.FAULT, detail, reset=True)
