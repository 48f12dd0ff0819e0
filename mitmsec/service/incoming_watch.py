"""Watches connections come in for a session, as long as it lasts; what becomes of them stands in `incoming`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mitmsec.audit.event import Seen
from mitmsec.core.policy import Policy
from mitmsec.service.incoming import Incoming
from mitmsec.service.inward import InwardGround
from mitmsec.service.scopes import Scope
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.shortfall import Shortfall

TURN_LIMIT = 64  # pieces of news


class IncomingWatch:
    """On the loop that runs when it is made. Ended by `close`, which is idempotent."""

    def __init__(
        self, hook: InboundHook, incoming: Incoming, record: Callable[[Seen], None], inward: InwardGround | None = None
    ) -> None:
        """With `inward` the gate has those for which the policy may have another word than `bypass`; ours then."""
        self._hook, self._incoming, self._record, self._inward = hook, incoming, record, inward
        self._is_closed = False
        asyncio.get_running_loop().add_reader(hook.fileno(), self._readable)

    @classmethod
    def begin(
        cls,
        scope: Scope,
        incoming: Incoming,
        record: Callable[[Seen], None],
        say: Callable[[str], None],
        *,
        paths: ExecutablePaths | None = None,
        inward: InwardGround | None = None,
        pins: Path | None = None,
    ) -> IncomingWatch | None:
        """Over all that the scope covers. None, and `say` is told why, where the kernel has not what that needs.

        `paths` as in `InboundHook.open`. With `inward` the gate depends on it, and it outlives us in `pins`: then this
        raises BackendUnavailable, ProgramRejected, OSError instead.
        """
        steering = None if inward is None else inward.maps_for(incoming.policy)
        pinned = pins if incoming.policy.governs_inbound else None
        try:
            hook = InboundHook.open(
                scope.path, selection=scope.selection, paths=paths, steering=steering, pin_folder=pinned
            )
        except (BackendUnavailable, OSError) as error:
            if inward is not None:
                inward.close()
                raise
            say(f"incoming connections are not seen: {error}")
            return None
        if inward is not None:
            try:
                inward.govern(incoming.policy, pins)
            except BaseException:
                hook.close()
                inward.close()
                raise
        return cls(hook, incoming, record, inward)

    @property
    def shortfall(self) -> Shortfall | None:
        return self._hook.shortfall

    def govern(self, policy: Policy, *, everything: bool, pins: Path | None = None) -> None:
        """Another policy is in force, and with `everything` whoever has no verdict is selected.

        Raises BackendUnavailable, ProgramRejected, OSError.
        """
        inward, steering = self._inward, None if self._inward is None else self._inward.maps_for(policy)
        pinned = pins if policy.governs_inbound else None
        self._hook.change(everything=everything, steering=steering, pin_folder=pinned)
        if inward is not None:
            inward.govern(policy, pinned)
        self._incoming.policy = policy

    def look(self, fault: Callable[..., None]) -> None:
        """Time has passed: some connections may have lived long, some news be lost, some have found no gate."""
        if self._inward is not None:
            self._inward.look(fault)
        if lost := self._hook.lost():
            self._tell(self._incoming.lost(lost))
            if self._inward is not None:
                self._inward.lost()
        self._tell(self._incoming.grown_old(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

    def close(self) -> None:
        """Connections that live on are on record as such."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._hook.fileno())
        while news := self._hook.drain():
            self._tell(self._incoming.take(news))
        self._tell(self._incoming.lost(self._hook.lost()))
        self._tell(self._incoming.left(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
        self._hook.close()
        if self._inward is not None:
            self._inward.close()

    def _readable(self) -> None:
        """In turns, as others have work: each piece of news may mean to read a process."""
        self._tell(self._incoming.take(self._hook.drain(TURN_LIMIT)))

    def _tell(self, events: Iterable[Seen]) -> None:
        for event in events:
            self._record(event)
