"""Asks what becomes of held SYNs: at once, or when enough is known of who sent them.

    AskOwner ──► the process is read ──► suffices? ─┬─ yes, or nothing more is to come ──► decide ──► OwnerTold
                         ▲                          └─ no ──► held ──────┐
                         └── a hash or a signature comes; FACTS_S are over ──┘

A process is read in a millisecond; the hash of a large executable and a signature may take hundreds of them. Until they
are there a policy that asks for them could not judge, and what is decided holds for the whole connection. So its SYN is
held, and nobody else's waits for it. When the time is over `decide` is asked in any case, and has to say what becomes
of a process that cannot be judged.
"""

from __future__ import annotations

from collections.abc import Container
from concurrent.futures import Future
from typing import Any

from msgspec.structs import replace

from mitmsec.core.model import Process, Value
from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.divert_seams import Callbacks, SocketTold
from mitmsec_redirect.divert_signals import AskOwner, Choice, OwnerTold
from mitmsec_redirect.owner import Owner

FACTS_S = 1.5  # less than any SYN is held
LOOK_S = 0.005


class _Waiting(Value, frozen=True):
    command: AskOwner
    socket: SocketTold
    until_s: float
    facts: tuple[Future[Any], ...] = ()

    def is_due(self, now_s: float) -> bool:
        return now_s >= self.until_s or any(fact.done() for fact in self.facts)


class Asking:
    """Not thread-safe. Times are monotonic seconds."""

    def __init__(self, owners: Owners, callbacks: Callbacks) -> None:
        self._owners, self._callbacks = owners, callbacks
        self._waiting: dict[int, _Waiting] = {}
        self._look_s = 0.0

    def ask(self, command: AskOwner, socket: SocketTold, now_s: float) -> OwnerTold | None:
        """Whose it is and what becomes of it. None: `again` will tell."""
        return self._asked(_Waiting(command, socket, now_s + FACTS_S), now_s)

    def again(self, held: Container[int], now_s: float) -> list[OwnerTold]:
        """Of those that wait, who can be told about now. Who is not among `held` any more is forgotten."""
        if now_s < self._look_s or not self._waiting:
            return []
        self._look_s = now_s + LOOK_S
        self._waiting = {number: one for number, one in self._waiting.items() if number in held}
        answers = [self._asked(one, now_s) for one in list(self._waiting.values()) if one.is_due(now_s)]
        return [told for told in answers if told is not None]

    def _asked(self, one: _Waiting, now_s: float) -> OwnerTold | None:
        self._waiting.pop(one.command.number, None)
        told = self._told(one, now_s)
        if isinstance(told, OwnerTold):
            return told
        self._waiting[one.command.number] = told
        return None

    def _told(self, one: _Waiting, now_s: float) -> OwnerTold | _Waiting:
        process, choice, fault = Process(pid=one.command.pid), Choice.LEAVE, ""
        try:
            if self._callbacks.selects(one.command.pid, one.socket):
                owner = self._owner(one, now_s)
                if isinstance(owner, _Waiting):
                    return owner
                process = owner.process
                choice = self._callbacks.decide(process, one.command.flow.remote, one.socket)
        except Exception as error:
            fault = repr(error)
        return OwnerTold(number=one.command.number, process=process, choice=choice, fault=fault)

    def _owner(self, one: _Waiting, now_s: float) -> Owner | _Waiting:
        """Who waits is read again when something has come, not before: thousands may wait."""
        owner = self._read(one)
        if self._callbacks.suffices(owner.process):
            return owner
        facts = owner.awaited
        if facts and now_s < one.until_s:
            return replace(one, facts=facts)
        return self._read(one)  # the last of it may have come since it was read

    def _read(self, one: _Waiting) -> Owner:
        asked = one.command
        return self._owners.owner(asked.pid, one.socket.uid, asked.connected_ns, asked.confidence, one.socket.call)
