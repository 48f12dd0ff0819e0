"""The recorder's end of one producer's channel.

Reading goes on until the end of file, whatever the other side's death looks like: a producer that was killed with our
answers unread leaves ECONNRESET in front of its last events, and those are still to be had. `Committed` counts from the
producer's first message, so only the newest matters: one that the kernel does not take is sent when it can be, or
replaced by a later one.

A producer may have so many messages or bytes under way (WINDOW, GATE_WINDOW); with more, it is not read on until some
are acknowledged. Its own window says the same, but a worker's is an attacker's to change. A gate is believed, and all
of its connections may end at once: what is read of it early is on record even if it is gone when the disk is ready.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from mitmsec.audit.event import PERMITTED, Seen
from mitmsec.audit.intake import Source
from mitmsec.channel import PACKET_LIMIT_BYTES, TORN, decoder
from mitmsec.core.messages import Committed, Role, encode

BURST = 64  # messages taken from one producer before the others have their turn
BURST_BYTES = 1 << 20
WINDOW = (2048, 4 << 20)  # messages, bytes
GATE_WINDOW = (16_384, 32 << 20)
SHARE_MESSAGES = 256  # under way: so many are read of each, however much there is of all


class Inlet:
    """Reads one producer. Any kind of event is decoded, so that a wrong one can be recorded as such.

    `on_message(inlet, seen)` is called for each message, `on_malformed(inlet, why)` for one that is none, and `on_end`
    once at the end of file.
    """

    def __init__(
        self,
        sock: socket.socket,
        source: Source,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Inlet, Seen], None],
        on_malformed: Callable[[Inlet, str], None],
        on_end: Callable[[Inlet], None],
    ) -> None:
        sock.setblocking(False)
        self.source = source
        self.received = 0  # messages so far
        self.awaiting: list[int] = []  # numbers of those that are not judged yet, in order
        self.ended = False
        self._window_limit, self._window_limit_bytes = GATE_WINDOW if source.role is Role.GATE else WINDOW
        self._sizes_bytes: deque[int] = deque()  # of the messages that are not acknowledged
        self._window_bytes = 0
        self._acknowledged = 0
        self._owed = 0
        self._failing = self._told_failing = False
        self._writing = False
        self._sock, self._loop = sock, loop
        self._on_message, self._on_malformed, self._on_end = on_message, on_malformed, on_end
        self._reading = False
        self.resume()

    @property
    def settled(self) -> int:
        """How many messages, from the first, have been judged: once what came of them is on disk, they are done."""
        return self.awaiting[0] if self.awaiting else self.received

    @property
    def full(self) -> bool:
        """As much is under way as may be."""
        return len(self._sizes_bytes) >= self._window_limit or self._window_bytes >= self._window_limit_bytes

    @property
    def has_its_share(self) -> bool:
        """It is read on only if the recorder has room for more of everybody."""
        return len(self._sizes_bytes) >= SHARE_MESSAGES

    def resume(self) -> None:
        if not self._reading and not self.ended:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def pause(self) -> None:
        """Leave further messages to the kernel's queue, and then to the producer's window."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _readable(self) -> None:
        """One turn: what is there, within a burst, until it is full or was told to pause."""
        messages, size_bytes = 0, 0
        while self._reading and messages < BURST and size_bytes < BURST_BYTES:
            if self.full:
                return self.pause()
            taken_bytes = self._read_one()
            if taken_bytes is None:
                return
            messages, size_bytes = messages + 1, size_bytes + taken_bytes

    def read(self, limit: int) -> None:
        """Take what is there now, at most `limit` messages, paused or full or not."""
        taken = 0
        while not self.ended and taken < limit and self._read_one() is not None:
            taken += 1

    def _read_one(self) -> int | None:
        """The size of the message that was taken; None where there is none, or the end."""
        while True:
            try:
                # No room for descriptors: the kernel closes any that a producer sends, and flags the packet.
                size_bytes, _, flags, _ = self._sock.recvmsg_into([_BUFFER])
                break
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # told once; what the producer had sent before follows
            except OSError:
                size_bytes = flags = 0
                break
        if size_bytes == 0:
            self._end()
            return None
        self.received += 1
        self._sizes_bytes.append(size_bytes)
        self._window_bytes += size_bytes
        self._take(size_bytes, flags)
        return size_bytes

    def _take(self, size_bytes: int, flags: int) -> None:
        if flags & TORN:
            return self._on_malformed(self, "a packet that is too long, or brings descriptors")
        try:
            seen = _DECODE(bytes(_BUFFER[:size_bytes]))
        except msgspec.MsgspecError as error:
            return self._on_malformed(self, str(error))
        self._on_message(self, seen)

    def acknowledge(self, count: int) -> None:
        """Tell the producer that its first `count` messages are on disk."""
        while self._sizes_bytes and self.received - len(self._sizes_bytes) < count:
            self._window_bytes -= self._sizes_bytes.popleft()
        self._owed = max(self._owed, count)
        if not self._writing:
            self._answer()

    def tell(self, *, failing: bool) -> None:
        """Tell the producer whether the disk takes nothing for now."""
        self._failing = failing
        if not self._writing:
            self._answer()

    def _answer(self) -> None:
        if self.ended or (self._owed, self._failing) == (self._acknowledged, self._told_failing):
            return self._write_later(False)
        try:
            self._sock.send(encode(Committed(count=self._owed, failing=self._failing)), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return self._write_later(True)
        except OSError:
            pass  # gone: reading tells
        self._acknowledged, self._told_failing = self._owed, self._failing
        self._write_later(False)

    def _write_later(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._sock, self._answer)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._sock)
        self._writing = wanted

    def _end(self) -> None:
        self.close()
        self._on_end(self)

    def close(self) -> None:
        """Idempotent; `on_end` is not called."""
        self.pause()
        self._write_later(False)
        if not self.ended:
            self.ended = True
            self._sock.close()


_KINDS: list[type[Seen]] = sorted(
    {kind for kinds in PERMITTED.values() for kind in kinds}, key=lambda kind: kind.__name__
)
_DECODE = decoder(_KINDS)
_BUFFER = memoryview(bytearray(PACKET_LIMIT_BYTES))  # every packet is decoded before the next one is read
