"""Origins' sockets that workers have. The gate keeps a duplicate of each: a flow that has ended really has.

    hand-over, UpstreamAnswer ──► lent ── both directions ended (the worker has shut it) ──► our duplicate closed
                                   │
                        the flow ends, by a reset ──► reset at once, whoever has it
                                   └── in order ───► LEAVE_S for what the worker has queued, then shut down

A worker that keeps a socket beyond its flow's record thus keeps a dead one.

SO_LINGER belongs to the socket, not to a descriptor, and speaks at the last close(). The gate sets it to "reset at
once" on whatever it hands out, and takes it off when an end is in order: so if gate and worker die, however they do,
nobody takes what came so far for the whole. Set otherwise it would make the gate's close() wait, be the descriptor
blocking or not; workers are denied it (mitmsec.service.seccomp), and before each close here it is taken off anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct

from mitmsec.gate.hangups import Hangups
from mitmsec.gate.refuse import reset

FURTHER_LIMIT = 8  # of one flow, beyond the one it was handed over with
FURTHER_PLENTY = 32  # in all: beyond it, a flow gets one, so that a few flows cannot take them all
FURTHER_IN_ALL_LIMIT = 64  # a flow's own two descriptors are counted with the flow; these are not
LEAVE_S = 35.0  # an honest worker's leg is closed after 32 s at most, see mitmsec.engine.leg
LEAVING_LIMIT = 128  # beyond it, the oldest is shut down early

_AT_ONCE, _IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # struct linger: on with 0 s; off


def hand_out(sock: socket.socket) -> None:
    """From now on the last close of `sock` is a reset, whoever's it is; `let_go` ends that."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


def take_in(sock: socket.socket) -> None:
    """From now on its last close is in order again."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _IN_ORDER)


def let_go(sock: socket.socket) -> None:
    """Close our descriptor in order, and do not wait for what is still to be sent, whatever others have set."""
    take_in(sock)
    sock.close()


def shut(sock: socket.socket) -> None:
    """End both directions for whoever has the socket, and close our descriptor."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    let_go(sock)


class Loans:
    """All sockets that are lent, by flow, and those of ended flows that workers may still finish."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hangups: Hangups) -> None:
        self._loop, self._hangups = loop, hangups
        self._lent: dict[str, set[socket.socket]] = {}
        self._leaving: dict[socket.socket, asyncio.TimerHandle] = {}
        self._further = 0

    def __len__(self) -> int:
        return sum(map(len, self._lent.values())) + len(self._leaving)

    def lend(self, flow: str, sock: socket.socket) -> bool:
        """Keep `sock`, which is ours from now on, while `flow`'s worker has it. False: too many, `sock` is closed."""
        lent = self._lent.setdefault(flow, set())
        limit = FURTHER_LIMIT if self._further < FURTHER_PLENTY else 1
        if lent and (len(lent) > limit or self._further >= FURTHER_IN_ALL_LIMIT):
            sock.close()
            return False
        self._further += bool(lent)
        lent.add(sock)
        hand_out(sock)
        self._hangups.watch(sock, functools.partial(self._ended, flow, sock), half=False)
        return True

    def take_back(self, flow: str) -> socket.socket | None:
        """The one that `flow`'s worker was lent, and has let go of: ours alone again. None: it has ended, or is not the
        only one.
        """
        lent = self._lent.get(flow, set())
        if len(lent) != 1:
            return None
        sock = self._lent.pop(flow).pop()
        self._hangups.forget(sock)
        take_in(sock)
        return sock

    def recall(self, flow: str, *, in_order: bool) -> None:
        """`flow` has ended. Idempotent."""
        lent = self._lent.pop(flow, set())
        self._further -= max(len(lent) - 1, 0)
        for sock in lent:
            if in_order:
                self._leave(sock)
            else:
                self._hangups.forget(sock)
                reset(sock)

    def close(self) -> None:
        """Let go of the duplicates: what workers still finish, they finish until they are ended themselves."""
        for sock in list(self._leaving):
            self._forget(sock)
            let_go(sock)

    def _leave(self, sock: socket.socket) -> None:
        if len(self._leaving) >= LEAVING_LIMIT:
            self._too_long(next(iter(self._leaving)))
        self._leaving[sock] = self._loop.call_later(LEAVE_S, self._too_long, sock)

    def _too_long(self, sock: socket.socket) -> None:
        self._forget(sock)
        shut(sock)

    def _ended(self, flow: str, sock: socket.socket) -> None:
        lent = self._lent.get(flow)
        if lent is not None and sock in lent:
            lent.discard(sock)
            self._further -= bool(lent)
        self._forget(sock)
        let_go(sock)

    def _forget(self, sock: socket.socket) -> None:
        self._hangups.forget(sock)
        timer = self._leaving.pop(sock, None)
        if timer is not None:
            timer.cancel()
