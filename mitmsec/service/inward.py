"""What a session needs so that its gate has the connections that come in: listeners, and what leads them there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never

from mitmsec.core.model import OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service.ground import listeners
from mitmsec.service.led_listeners import Found, LedListeners, Standing
from mitmsec_redirect import netns
from mitmsec_redirect.backend import Backend, BackendUnavailable
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.inbound_records import Inbound
from mitmsec_redirect.steering import Steering
from mitmsec_redirect.steering_records import Steered, SteeringMaps

NO_ROOM_FOR: Mapping[Steered, str] = {
    Steered.NO_ROOM: "listeners of selected programs",
    Steered.NO_ROOM_UNDECIDED: "listeners of programs that are not judged yet",
}
LATE = "selected programs began too fast for each to be looked at; what they had open is led since now"
SWEEP_AGAIN_S = 5.0  # a sweep reads what all selected processes have open, and who listens can be made to get lost
TELL_AGAIN_S = 5.0  # anybody can call a gate that has stalled, and listen where there is no room, all the time


class InwardGround:
    """Made by `open`, ended by `close`. The listeners stay open as long as it does, whatever gate serves them."""

    def __init__(self, gates: list[socket.socket], steering: Steering, led: LedListeners | None = None) -> None:
        """`led`: whose listeners are led, where that is not the whole cgroup's business."""
        self._gates, self._steering, self._led = gates, steering, led
        self._is_leading = self._has_led = self._is_owed = False
        self._swept_s = float("-inf")
        self._searching: asyncio.Future[Found] | None = None
        self._late = 0  # programs that have begun, and that only a sweep looks at
        self._missed = Counter[Steered]()  # and not told yet
        self._told_s: dict[Steered, float] = {}

    @classmethod
    def open(cls, policy: Policy, hook: Backend, network: int, standing: Standing | None = None) -> InwardGround | None:
        """In the network namespace `network`; nobody is led to the gate before `govern`.

        None: the policy lets all pass, and the gate need not have them. A `standing` selection's policy may change, so
        that its gate is given what it may need then. Raises BackendUnavailable, ProgramRejected, OSError.
        """
        if not isinstance(hook, ConnectHook):
            if policy.governs_inbound:
                raise unavailable()
            return None
        if standing is None and not policy.governs_inbound:
            return None
        gates = netns.inside(network, listeners)
        try:
            steering = Steering.open(
                [gate.fileno() for gate in gates],
                heartbeat_fd=hook.heartbeat_fd,
                on_failure=policy.on_failure,
                netns_fd=network,
            )
        except BaseException:
            for gate in gates:
                gate.close()
            raise
        return cls(gates, steering, None if standing is None else LedListeners(standing, steering, network))

    def maps_for(self, policy: Policy) -> SteeringMaps | None:
        """For who sees them come in under this policy. None: it need not know who listens.

        Once anybody has been led, it has to know of those legs that live on.
        """
        return self._steering.maps if policy.governs_inbound or self._has_led else None

    def govern(self, policy: Policy, pins: Path | None) -> None:
        """Lead to the gate what this policy has to say more of than that it passes; who listens is seen already.

        Raises BackendUnavailable, ProgramRejected, OSError.
        """
        if not policy.governs_inbound:
            self.detach()
            return
        if self._led is not None:
            self._led.sweep()
            self._is_owed = False
        self._steering.lead(policy.on_failure, pins)
        self._is_leading = self._has_led = True

    def lost(self) -> None:
        """Some who have begun to listen were not heard: all are looked for, or will be as time passes."""
        self._is_owed = True
        self._sweep_if_owed()

    def _sweep_if_owed(self) -> None:
        """Where nothing is led, nothing is owed: `govern` sweeps."""
        is_due = self._is_owed and self._searching is None and time.monotonic() - self._swept_s >= SWEEP_AGAIN_S
        if self._led is None or not (self._is_leading and is_due):
            return
        self._swept_s = time.monotonic()
        with contextlib.suppress(OSError, RuntimeError):  # no thread; the next may have better luck
            self._searching = asyncio.get_running_loop().run_in_executor(None, self._led.search())
            self._is_owed = False
            self._searching.add_done_callback(self._searched)

    def _searched(self, searching: asyncio.Future[Found]) -> None:
        self._searching = None
        if self._led is None or not self._is_leading or searching.cancelled():
            return
        try:
            self._led.swept(searching.result())
        except OSError:
            self._is_owed = True

    def heard(self, one: Inbound, process: Process) -> None:
        """Somebody has begun to listen; while nothing is led, that can wait until `govern` looks for all."""
        if self._led is not None and self._is_leading:
            self._led.heard(one, process)

    @property
    def count(self) -> int:
        """How many listeners there are."""
        return len(self._gates)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a gate is given: two maps, then the listeners."""
        return (*self._steering.descriptors, *(gate.fileno() for gate in self._gates))

    def forget_legs(self) -> None:
        """The gate has ended."""
        self._steering.forget_legs()

    def look(self, fault: Callable[..., None]) -> None:
        """Time has passed: tell of connections for which there was no gate; they went as `on_failure` says.

        And of listeners for which there is no room: nobody can refuse what comes in for them. Of each at once, and
        then of all that there were in `TELL_AGAIN_S`.
        """
        if self._led is not None and self._is_leading:
            try:
                left = self._led.look()
                self._late += left.begun
                self._is_owed |= bool(left.begun) or left.passed_on
            except OSError:  # whom it had begun to look at may be forgotten; a sweep looks at all
                self._is_owed = True
        self._sweep_if_owed()
        if self._late and not self._is_owed and self._searching is None:
            fault("listeners_led_late", LATE, count=self._late, failed=OnFailure.OPEN)
            self._late = 0
        self._look_for_missed(fault)

    def _look_for_missed(self, fault: Callable[..., None]) -> None:
        """Listeners for which there was no room are looked for anew: by then there may be some."""
        found, now_s = self._steering.missed(), time.monotonic()
        self._is_owed |= not NO_ROOM_FOR.keys().isdisjoint(found)
        self._missed.update(found)
        for code in list(self._missed):
            if now_s - self._told_s.get(code, float("-inf")) >= TELL_AGAIN_S:
                self._told_s[code] = now_s
                self._tell_missed(code, self._missed.pop(code), fault)

    def _tell_missed(self, code: Steered, count: int, fault: Callable[..., None]) -> None:
        match code:
            case Steered.LET_IN | Steered.REFUSED:
                fault("gate_stalled", "connections that came in", count=count)
            case Steered.NO_ROOM | Steered.NO_ROOM_UNDECIDED:
                fault("listeners_not_led", NO_ROOM_FOR[code], count=count, failed=OnFailure.OPEN)
            case _:
                assert_never(code)

    def detach(self) -> None:
        """Lead nobody to the gate any more; what it has, it keeps."""
        self._is_leading = False
        self._steering.detach()

    def close(self) -> None:
        """The gate has ended."""
        self._is_leading = False
        self._steering.close()
        for gate in self._gates:
            gate.close()


def unavailable() -> BackendUnavailable:
    """What is said where a policy asks for more than its backend can do."""
    return BackendUnavailable(
        "the policy governs connections that come in; only the connect hook leads them to the gate",
        "Use --backend connect_hook, or a policy that lets them pass.",
    )
