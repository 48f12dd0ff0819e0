"""The capture files of the sessions that asked for one. A file that fails ends that capture, never the log; a flow
that cannot stand in a file is left out, and said, and the others go on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Protocol

from mitmsec.audit.event import BytesSeen, ConnectionSeen, Outcome
from mitmsec.audit.flows import Flow
from mitmsec.capture.writer import CaptureFailed, CaptureWriter
from mitmsec.core.model import Endpoint, Process

RESETS = frozenset({Outcome.BLOCKED, Outcome.CUT, Outcome.FAULT, Outcome.ORIGIN_RESET})  # as the program saw it

PIPE_BYTES = 1 << 20  # what a pipe holds for a reader that is a moment late


class Sink(Protocol):
    """What a capture file takes. Every method may raise CaptureFailed."""

    def open_flow(
        self,
        flow: str,
        process: Process,
        local: Endpoint,
        remote: Endpoint,
        time_ns: int,
        comment: str = "",
        *,
        host: str | None = None,
    ) -> None: ...

    def data(self, flow: str, sent: bool, data: bytes, time_ns: int) -> None: ...

    def end_flow(self, flow: str, time_ns: int, *, reset: bool = False, comment: str = "") -> None: ...

    def secrets(self, lines: bytes) -> None: ...

    def lost(self, pieces: int) -> None: ...

    def tick(self, time_ns: int) -> None: ...

    def finish(self) -> bool: ...

    def close(self) -> None: ...


class Captures:
    """One sink a session. `on_failed(session, why)` is called once for a capture that had to be given up,
    `on_left_out(session, flow, why)` once for a flow that is not in it."""

    def __init__(
        self, on_failed: Callable[[str, str], None], on_left_out: Callable[[str, str, str], None] | None = None
    ) -> None:
        self._on_failed, self._on_left_out = on_failed, on_left_out
        self._sinks: dict[str, Sink] = {}
        self._open: dict[str, set[str]] = {}  # session → flows that the file knows, or was offered in vain

    def open(self, session: str, descriptor: int, command: str) -> None:
        """Flows of `session` go into the file `descriptor`, which is owned from now on.

        It may be a pipe with any reader, and all runs share this process: so it must not block, whoever opened it.
        """
        self.close(session)
        os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # no pipe, or as large as this user may have it
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            sink = CaptureWriter(os.fdopen(descriptor, "wb", buffering=0), command=command)
        except (CaptureFailed, OSError) as error:
            return self._on_failed(session, str(error))
        self._sinks[session], self._open[session] = sink, set()

    def piece(self, session: str, seen: BytesSeen, time_ns: int, flow: Flow | None = None) -> None:
        """A piece of a flow. Whose it is and between whom, the first piece says, or the gate with its hand-over."""

        def write(sink: Sink) -> None:
            self._begin(session, sink, seen, flow, time_ns)
            if seen.data:
                sink.data(seen.flow, seen.sent, seen.data, time_ns)

        self._guarded(session, write)

    def _begin(self, session: str, sink: Sink, seen: BytesSeen, flow: Flow | None, time_ns: int) -> None:
        if seen.flow in self._open[session]:
            return
        about = seen if flow is None else flow
        if about.process is not None and about.local is not None and about.remote is not None:
            self._open[session].add(seen.flow)
            host = None if flow is None else flow.host
            said = f"flow: {seen.flow}"
            try:
                sink.open_flow(seen.flow, about.process, about.local, about.remote, time_ns, said, host=host)
            except ValueError as error:  # its pieces count as dropped, in the file's statistics
                if self._on_left_out is not None:
                    self._on_left_out(session, seen.flow, str(error))

    def secrets(self, session: str, lines: bytes) -> None:
        self._guarded(session, lambda sink: sink.secrets(lines))

    def lost(self, session: str, pieces: int) -> None:
        """Pieces that the producer had to give up."""
        self._guarded(session, lambda sink: sink.lost(pieces))

    def ended(self, session: str, seen: ConnectionSeen, time_ns: int) -> None:
        """The gate's last word on a flow: how it ended stands with its closing packet."""
        self._open.get(session, set()).discard(seen.flow)
        said = f"action: {seen.action}\nrule: {seen.rule}\noutcome: {seen.outcome}"
        reset = seen.outcome in RESETS
        self._guarded(session, lambda sink: sink.end_flow(seen.flow, time_ns, reset=reset, comment=said))

    def tick(self, time_ns: int) -> None:
        """Time goes on, though nothing may come."""
        for session in list(self._sinks):
            self._guarded(session, lambda sink: sink.tick(time_ns))

    def is_complete(self, session: str) -> bool:
        """Nothing more comes for the session's file; True once it has everything, or has failed. Needs `tick`."""
        complete: list[bool] = []
        self._guarded(session, lambda sink: complete.append(sink.finish()))
        return all(complete)

    def close(self, session: str) -> None:
        """The session's file is complete. Idempotent."""
        self._guarded(session, lambda sink: sink.close())
        self._sinks.pop(session, None)
        self._open.pop(session, None)

    def close_all(self) -> None:
        for session in list(self._sinks):
            self.close(session)

    def _guarded(self, session: str, act: Callable[[Sink], None]) -> None:
        sink = self._sinks.get(session)
        if sink is None:
            return
        try:
            act(sink)
        except (CaptureFailed, OSError, ValueError, OverflowError, struct.error) as error:
            del self._sinks[session], self._open[session]
            _closed(sink)
            self._on_failed(session, str(error))


def _closed(sink: Sink) -> None:
    with contextlib.suppress(
        CaptureFailed, OSError, OverflowError, struct.error
    ):  # it has failed already, and that was told
        sink.close()
