"""Whose a connection is, as the gate is told: at once, or when the executable's hash is there.

A policy that selects by hash cannot decide without one: then it is waited for, and if it cannot be had, the gate does
what `on_failure` says. Any other policy decides the same with or without; then the hash is only for the record, and a
large executable's is waited for HASH_WAIT_S at its first connection.

Whatever goes wrong meanwhile, there is an answer: what the kernel said at connect(), and no more. A program chooses its
path, its name and when it ends, so none of these may keep the gate waiting or an event from the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from mitmsec.core.model import Caller, Confidence, Process
from mitmsec.core.policy import Policy
from mitmsec_redirect.owner import Owner, user_name

HASH_WAIT_S = 0.5  # less than the gate waits
WHY_CHARACTERS = 200


class Asked(Protocol):
    """A connection as the kernel told it at connect(): a question of the gate, or an attempt that was missed."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def comm(self) -> str: ...
    @property
    def caller(self) -> Caller | None: ...


class Owners:
    """Whose a run's connections are. Nothing here raises.

    `read(pid, uid, comm, connected_ns, caller)` may; `say` is told of it once for each kind of failure, not for each
    attempt. `must_have_hash` follows the policy.
    """

    def __init__(
        self,
        read: Callable[[int, int, str, int | None, Caller | None], Owner],
        say: Callable[[str], None],
        *,
        must_have_hash: bool,
    ) -> None:
        self._read, self._say, self.must_have_hash = read, say, must_have_hash
        self._said: set[str] = set()

    def of(self, asked: Asked, connected_ns: int | None) -> Owner:
        """The owner as far as it is known now; its process can be told to others as it is."""
        return self.told_by(asked, lambda: self._read(asked.pid, asked.uid, asked.comm, connected_ns, asked.caller))

    def told_by(self, asked: Asked, read: Callable[[], Owner]) -> Owner:
        """The same of whom `read` names."""
        try:
            owner = read()
            msgspec.msgpack.encode(owner.process)  # raises for text that is no Unicode, a path of any bytes for example
        except Exception as error:
            self._failed(asked.pid, error)
            return Owner(inferred(asked))
        return owner

    async def hashed(self, owner: Owner) -> Process:
        """The process as it is to be told to the gate, with its hash if that comes (in time)."""
        try:
            return await hashed(owner, must_have=self.must_have_hash)
        except Exception as error:
            self._failed(owner.process.pid, error)
            return owner.process

    def _failed(self, pid: int, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            why = f"{error!r}"[:WHY_CHARACTERS]
            self._say(f"owner of a connection, pid {pid}: {why}; others of this kind in this run are not told")


def inferred(asked: Asked) -> Process:
    """What the kernel said at connect(), and nothing that would have to be read of the process."""
    if not asked.pid:
        return Process(pid=0)
    name = asked.comm or None
    return Process(pid=asked.pid, name=name, user=_user(asked.uid), uid=asked.uid, confidence=Confidence.INFERRED)


def _user(uid: int) -> str:
    try:
        name = user_name(uid)
        name.encode()
    except (OSError, ValueError):
        return str(uid)
    return name


def decides_by_hash(policy: Policy) -> bool:
    """Some application is selected by the hash of its executable."""
    return any(application.sha256 for application in policy.applications)


def told(owner: Owner) -> Process:
    """The process as far as it is known now."""
    return owner.hashed() if owner.sha256 is not None and owner.sha256.done() else owner.process


async def hashed(owner: Owner, *, must_have: bool) -> Process:
    """The process as it is to be told to the gate, its hash too if that comes in time; with `must_have`, ever."""
    if owner.sha256 is None:
        return owner.process
    try:
        async with asyncio.timeout(None if must_have else HASH_WAIT_S):
            await asyncio.shield(asyncio.wrap_future(owner.sha256))
    except TimeoutError:
        return owner.process
    return owner.hashed()
