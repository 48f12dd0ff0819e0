"""What a session needs so that its gate has the connections that come in: listeners, and what leads them there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from mitmsec.core.policy import Policy
from mitmsec.service.ground import listeners
from mitmsec_redirect import netns
from mitmsec_redirect.backend import Backend, BackendUnavailable
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.steering import Steering
from mitmsec_redirect.steering_records import SteeringMaps


class InwardGround:
    """Made by `open`, ended by `close`. The listeners stay open as long as it does, whatever gate serves them."""

    def __init__(self, gates: list[socket.socket], steering: Steering) -> None:
        self._gates, self._steering = gates, steering

    @classmethod
    def open(cls, policy: Policy, hook: Backend, network: int, pins: Path | None) -> InwardGround | None:
        """In the network namespace `network`. None: the policy lets all pass, and the gate need not have them.

        Raises BackendUnavailable, ProgramRejected, OSError.
        """
        if not policy.governs_inbound:
            return None
        if not isinstance(hook, ConnectHook):
            raise BackendUnavailable(
                "the policy governs connections that come in; only the connect hook leads them to the gate",
                "Use --backend connect_hook, or a policy that lets them pass.",
            )
        gates = netns.inside(network, listeners)
        try:
            steering = Steering.open(
                [gate.fileno() for gate in gates],
                heartbeat_fd=hook.heartbeat_fd,
                on_failure=policy.on_failure,
                netns_fd=network,
                pin_folder=pins,
            )
        except BaseException:
            for gate in gates:
                gate.close()
            raise
        return cls(gates, steering)

    @property
    def maps(self) -> SteeringMaps:
        """For who sees them come in."""
        return self._steering.maps

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
        """Tell of connections for which there was no gate; they went as `on_failure` says."""
        for count in self._steering.missed().values():
            fault("gate_stalled", "connections that came in", count=count)

    def detach(self) -> None:
        """Lead nobody to the gate any more; what it has, it keeps."""
        self._steering.detach()

    def close(self) -> None:
        """The gate has ended."""
        self._steering.close()
        for gate in self._gates:
            gate.close()
