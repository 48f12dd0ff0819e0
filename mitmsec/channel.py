"""A channel between two of our processes: messages with file descriptors over a Unix SOCK_SEQPACKET pair.

One packet is one message (msgpack, tagged by class name). Sending never blocks: what the kernel does not take at once
waits in a bounded queue and leaves when the socket is writable again. Every channel is read with a closed list of
message types; anything else is `ChannelBroken`, and the owner ends the channel. Not thread-safe: one loop owns it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import msgspec

from mitmsec.core.messages import Message, encode

if TYPE_CHECKING:  # who never attaches to a loop needs none
    import asyncio

PACKET_LIMIT_BYTES = 180_000  # below the kernel's default send buffer, which bounds one packet
FDS_LIMIT = 16
BURST = 64  # messages taken from one channel before other events have their turn
QUEUE_LIMIT = 4096
RETRY_S = 0.01  # where the kernel has no room and does not say when it will have
TORN = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # an int: to combine flags as what they are takes a microsecond
_FD = struct.Struct("i")
NO_ROOM = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})  # the last: too many descriptors on their way


class ChannelBroken(Exception):
    """The other side sent what this channel does not carry, or went away in the middle of it."""


class ChannelFull(Exception):
    """The other side has not read for so long that the queue is full; the message was not sent."""


class Sent(Enum):
    """What became of one attempt to send."""

    YES = auto()  # or nobody is there to take it
    WHEN_WRITABLE = auto()
    LATER = auto()


class Channel:
    """One end. `accepts` are the message types that the other side may send."""

    def __init__(
        self, sock: socket.socket, accepts: Sequence[type[Message]], *, queue_limit: int | None = None
    ) -> None:
        sock.setblocking(False)
        self._queue_limit = queue_limit
        self._sock = sock
        self._decode = decoder(accepts)
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def queued(self) -> int:
        """Messages that the kernel has not taken yet."""
        return len(self._queue)

    # -- with a loop ---------------------------------------------------------------------------------------------------
    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Any, list[int]], None],
        on_end: Callable[[], None],
        *,
        burst: int = BURST,
    ) -> None:
        """Deliver each message with its descriptors (the callee owns them); `on_end` once at the end.

        At most `burst` of them in one turn of the loop: fewer where each takes long.
        """
        self._loop = loop

        def end() -> None:
            self.close()
            on_end()

        def readable() -> None:
            for _ in range(burst):
                try:
                    received = self.receive()
                except BlockingIOError:
                    return
                except (ChannelBroken, OSError):
                    return end()
                if received is None:
                    return end()
                on_message(*received)
                if self.closed:
                    return

        loop.add_reader(self._sock, readable)
        self._flush()

    def send(self, message: Message, *fds: int) -> None:
        """Send, or queue with duplicates of `fds`. The caller keeps its own descriptors.

        A peer that has gone away is no error here: its end of file reaches `on_end`. Raises ChannelFull; OSError if the
        message has to wait and there is no descriptor left to duplicate `fds`.
        """
        packet = encode(message)
        if len(packet) > PACKET_LIMIT_BYTES:
            raise ValueError(f"{type(message).__name__} of {len(packet)} bytes does not fit in one packet")
        if self.closed:
            return
        if not self._queue and self._sent(packet, fds) is Sent.YES:
            return
        if len(self._queue) >= (QUEUE_LIMIT if self._queue_limit is None else self._queue_limit):
            raise ChannelFull(type(message).__name__)
        self._queue.append((packet, _duplicates(fds)))
        if len(self._queue) == 1:
            self._flush()

    def _sent(self, packet: bytes, fds: Sequence[int]) -> Sent:
        try:
            if fds:
                socket.send_fds(self._sock, [packet], list(fds), socket.MSG_NOSIGNAL)
            else:
                self._sock.send(packet, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return Sent.WHEN_WRITABLE
        except OSError as error:
            if error.errno in NO_ROOM:
                return Sent.LATER
            # else gone: the reader learns it
        return Sent.YES

    def _flush(self) -> None:
        """Send what waits, and see to it that the rest is tried again."""
        self._retry = None
        sent = Sent.YES
        while self._queue and sent is Sent.YES:
            packet, fds = self._queue[0]
            sent = self._sent(packet, fds)
            if sent is Sent.YES:
                self._queue.popleft()
                close_all(fds)
        if self._loop is None:
            return
        if sent is Sent.WHEN_WRITABLE:
            self._loop.add_writer(self._sock, self._flush)
        else:
            self._loop.remove_writer(self._sock)
        if sent is Sent.LATER:  # the socket may be writable all the while: waiting for that would spin
            self._retry = self._loop.call_later(RETRY_S, self._flush)

    # -- without a loop ------------------------------------------------------------------------------------------------
    def receive(self) -> tuple[Any, list[int]] | None:
        """The next message and its descriptors, None at end of file.

        Raises BlockingIOError when there is none yet, ChannelBroken for a packet that this channel does not carry.
        """
        packet, ancillary, flags, _ = self._sock.recvmsg(  # socket.recv_fds does not pass flags on
            PACKET_LIMIT_BYTES + 1, socket.CMSG_LEN(FDS_LIMIT * _FD.size), socket.MSG_CMSG_CLOEXEC
        )
        fds = [fd for _, kind, data in ancillary if kind == socket.SCM_RIGHTS for fd in _descriptors(data)]
        if not packet:
            close_all(fds)
            return None
        if flags & TORN:
            close_all(fds)
            raise ChannelBroken("truncated packet")
        try:
            return self._decode(packet), fds
        except msgspec.MsgspecError as error:
            close_all(fds)
            raise ChannelBroken(str(error)) from error

    def exchange(self, message: Message | None, *fds: int, timeout_s: float | None) -> tuple[Any, list[int]] | None:
        """Blocking: send `message` (unless None) and wait for the next one. Raises TimeoutError."""
        self._sock.settimeout(timeout_s)
        try:
            if message is not None:
                socket.send_fds(self._sock, [encode(message)], list(fds), socket.MSG_NOSIGNAL)
            return self.receive()
        finally:
            self._sock.setblocking(False)

    def close(self) -> None:
        """Idempotent. Queued messages are dropped."""
        if self.closed:
            return
        self.closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        while self._queue:
            close_all(self._queue.popleft()[1])
        self._sock.close()


def decoder(accepts: Sequence[type[Message]]) -> Callable[[bytes], Any]:
    """A function that parses one packet into one of `accepts`. Raises msgspec.MsgspecError."""
    union: Any = accepts[0]
    for kind in accepts[1:]:
        union = union | kind
    return msgspec.msgpack.Decoder(union).decode


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel, not inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _descriptors(data: bytes) -> Iterator[int]:
    """Those of one SCM_RIGHTS; what is torn off is closed by the kernel."""
    whole = len(data) - len(data) % _FD.size
    return (fd for (fd,) in _FD.iter_unpack(data[:whole]))


def _duplicates(fds: Sequence[int]) -> list[int]:
    """A duplicate of each, or none of any. Raises OSError."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 - those that were made are closed when the next cannot be
    except OSError:
        close_all(made)
        raise
    return made


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
