"""A relay: two directions, each with at most one buffer, filled only when empty, drained as the sink allows.

       fill             drain
client ────► Pipe | Copy ────► origin       a sink that does not take: the source is not read (backpressure)
       ◄────────────────────                an end of stream: passed on once the buffer is empty (half-close)
                                            an error on either side: the relay is over, both are to be reset
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

from mitmsec.gate.lean_loop import Loop, Timer
from mitmsec.gate.signals import Ending
from mitmsec.gate.splice import Pipe, Pipes

COPY_SIZE_BYTES = 65536
ROUNDS = 8  # fills of one direction before other flows have their turn
BULK_BYTES = 16384  # a turn that moves less is no part of a bulk transfer
BULK_TURNS = 16  # in a row, and nothing the other way: from then on more is let gather before it is moved
GATHER_S = 0.002
LAST_WORDS_LIMIT_BYTES = 8 << 20  # more than sockets hold


class Tee(Protocol):
    """Takes copies of what passes."""

    def take(self, sent: bool, data: bytes) -> bool:
        """Keep `data`. False: it cannot be kept, and what cannot be kept must not pass."""

    def wait(self, resume: Callable[[], None]) -> bool:
        """Whether there is no room now; then `resume` is called when there is."""


type Edit = Callable[[bytes], bytes]
"""What goes on to the client instead of what came; with nothing, which is the end, what was held back."""


class Unrecorded(Exception):
    """The tee refuses."""


class Copy:
    """A buffer in our own memory, for bytes that are copied on their way or find no pipe."""

    __slots__ = ("_edit", "_rest", "_sent", "_tee", "size_bytes")

    def __init__(self, sent: bool, tee: Tee | None, edit: Edit | None = None) -> None:
        self.size_bytes = COPY_SIZE_BYTES
        self._rest = memoryview(b"")
        self._sent, self._tee, self._edit = sent, tee, edit

    @property
    def held_bytes(self) -> int:
        return len(self._rest)

    def fill(self, source: socket.socket) -> int:
        data = source.recv(self.size_bytes)
        if data and self._tee is not None and not self._tee.take(self._sent, data):
            raise Unrecorded
        self._rest = memoryview(data if self._edit is None else self._edit(data))
        return len(data) or len(self._rest)

    def drain(self, sink: socket.socket) -> int:
        moved = sink.send(self._rest)
        self._rest = self._rest[moved:]
        return moved


class Course:
    """One direction of a relay."""

    def __init__(self, relay: Relay, source: socket.socket, sink: socket.socket, sent: bool) -> None:
        self._relay, self._source, self._sink, self._sent = relay, source, sink, sent
        self._buffer: Pipe | Copy | None = None
        self.bulk_turns = 0
        self._gathering: Timer | None = None
        self.moved_bytes = 0
        self.over = False

    def read(self) -> None:
        """From now on, move bytes whenever there are some."""
        self._relay.loop.add_reader(self._source, self.move)

    def stop(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        self._relay.loop.remove_reader(self._source)
        self._relay.loop.remove_writer(self._sink)
        self._let_go()

    def move(self) -> None:
        """Fill and drain until the source has no more, the sink takes no more, or others want their turn."""
        before = self.moved_bytes
        try:
            for _ in range(ROUNDS):
                if not self._round():
                    break
        except Unrecorded:
            return self._relay.end(Ending.UNRECORDED)
        if self._relay.ended:
            return
        moved = self.moved_bytes - before
        if moved:
            self._relay.other(self).bulk_turns = 0  # question and answer: who waits for an answer must not wait for us
        self.bulk_turns = self.bulk_turns + 1 if moved >= BULK_BYTES else 0
        if self.bulk_turns >= BULK_TURNS:
            self._gather()

    def _gather(self) -> None:
        """A turn costs the same for many bytes as for few: in a bulk transfer, wait a moment for many.

        Only where nothing else is waited for, neither the sink nor the tee, so that one thing resumes at a time.
        """
        if self._relay.tee is None and self._buffer is None and not self.over and not self._relay.ended:
            self._relay.loop.remove_reader(self._source)
            self._gathering = self._relay.loop.call_later(GATHER_S, self._gathered)

    def _gathered(self) -> None:
        """Move it; as long as it is much, let more gather at once, without asking first whether there is any."""
        self._gathering = None
        self.move()
        is_waiting = self._gathering is not None or self._buffer is not None  # for more, or for the sink
        if not is_waiting:
            self._resume()

    def _round(self) -> bool:
        """Whether there may be more to do at once."""
        if self._relay.ended or self.over:
            return False
        tee = self._relay.tee
        if tee is not None and tee.wait(self._resume):
            self._relay.loop.remove_reader(self._source)
            return False
        buffer = self._buffer = self._buffer or self._new_buffer()
        try:
            filled = buffer.fill(self._source)
        except BlockingIOError:
            self._let_go()
            return False
        except OSError:
            return self._relay.broken(self._source)
        if not filled:
            self._end_of_stream()
            return False
        return self._drain(buffer) and filled >= COPY_SIZE_BYTES

    def _drain(self, buffer: Pipe | Copy) -> bool:
        """Whether the buffer is empty now; else it goes on when the sink is writable."""
        try:
            while buffer.held_bytes:
                self.moved_bytes += buffer.drain(self._sink)
        except BlockingIOError:
            self._relay.loop.remove_reader(self._source)
            self._relay.loop.add_writer(self._sink, self._writable)
            return False
        except OSError:
            return self._relay.broken(self._sink)
        self._let_go()
        return True

    def _writable(self) -> None:
        assert self._buffer is not None
        if self._drain(self._buffer):
            self._relay.loop.remove_writer(self._sink)
            self.read()

    def _resume(self) -> None:
        if not self._relay.ended and not self.over:
            self.read()

    def _new_buffer(self) -> Pipe | Copy:
        edit = None if self._sent else self._relay.edit
        if self._relay.tee is not None or edit is not None:
            return Copy(self._sent, self._relay.tee, edit)
        return self._relay.pipes.take() or Copy(self._sent, None)

    def _let_go(self) -> None:
        if isinstance(self._buffer, Pipe):
            self._relay.pipes.give_back(self._buffer)
        self._buffer = None

    def _end_of_stream(self) -> None:
        self.over = True
        self._relay.loop.remove_reader(self._source)
        self._let_go()
        with contextlib.suppress(OSError):  # the sink has gone: the other direction finds out
            self._sink.shutdown(socket.SHUT_WR)
        self._relay.course_over()

    def last_words(self) -> None:
        """Pass on what can be passed on without waiting."""
        limit = self.moved_bytes + LAST_WORDS_LIMIT_BYTES
        buffer = self._buffer = self._buffer or self._new_buffer()
        with contextlib.suppress(OSError, Unrecorded):  # there is no more, or it is not taken
            while self.moved_bytes < limit and (buffer.held_bytes or buffer.fill(self._source)):
                self.moved_bytes += buffer.drain(self._sink)


class Relay:
    """Carries bytes both ways between two connected sockets, which stay the caller's. `on_end` is called once."""

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        origin: socket.socket,
        pipes: Pipes,
        tee: Tee | None,
        on_end: Callable[[Ending], None],
    ) -> None:
        self.loop, self.pipes, self.tee, self._client, self._on_end = loop, pipes, tee, client, on_end
        self.edit: Edit | None = None
        self.ended = False
        self._out = Course(self, client, origin, sent=True)
        self._in = Course(self, origin, client, sent=False)

    @property
    def sent_bytes(self) -> int:
        """Handed on to the origin."""
        return self._out.moved_bytes

    @property
    def received_bytes(self) -> int:
        """Handed on to the client."""
        return self._in.moved_bytes

    def copy_to(self, tee: Tee | None) -> None:
        """From the next piece on."""
        self.tee = tee

    def start(self) -> None:
        """Begin. What the client has said already is moved at once: it has mostly been peeked, and waits."""
        self._out.read()
        self._in.read()
        self._out.move()

    def stop(self) -> None:
        """Move nothing more; `on_end` is not called. Idempotent."""
        self.ended = True
        self._out.stop()
        self._in.stop()

    def dissolve(self) -> None:
        """Nothing is left of it: it is over, nobody asks it any more, and its directions need not know it."""
        del self._out, self._in

    def other(self, course: Course) -> Course:
        """The other direction."""
        return self._in if course is self._out else self._out

    def course_over(self) -> None:
        if self._out.over and self._in.over:
            self.end(Ending.ORDERLY)

    def broken(self, side: socket.socket) -> bool:
        """`side` is gone. What it said before may still lie in its buffer: an origin's last answer, for example."""
        if not self.ended:
            self.ended = True
            course = self._out if side is self._client else self._in
            ending = Ending.CLIENT_RESET if side is self._client else Ending.ORIGIN_RESET
            if course.over:  # it had ended in order; that it takes no more is how many programs close
                ending = Ending.ORDERLY
            else:
                course.last_words()
            self._finish(ending)
        return False

    def end(self, ending: Ending) -> None:
        if not self.ended:
            self._finish(ending)

    def _finish(self, ending: Ending) -> None:
        self.stop()
        self._on_end(ending)
