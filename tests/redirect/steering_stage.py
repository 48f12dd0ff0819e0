"""A gate's listeners, its heartbeat, and connections that are led to them as they come in."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from pathlib import Path

from redirect_sandbox import Sandbox

from mitmsec.core.model import OnFailure
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.inbound_records import InboundKind
from mitmsec_redirect.legs import Leg, Legs
from mitmsec_redirect.steering import Steering
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import Verdict, entry


class Standing:
    """Maps as a standing service has them, over the cgroup of a sandbox."""

    def __init__(self) -> None:
        self.verdicts = Map.create(MapKind.HASH, 4, 8, 64, "test_verdicts")
        self.runs = Map.create(MapKind.HASH, 8, 4, 64, "test_runs")

    def selection(self, *, everything: bool = False) -> Selection:
        return Selection(self.verdicts.fd, self.runs.fd, everything=everything)

    def judge(self, pid: int, verdict: Verdict) -> None:
        self.verdicts.update(struct.pack("=I", pid), struct.pack("=Q", entry(time.monotonic_ns(), verdict)))

    def close(self) -> None:
        self.verdicts.close()
        self.runs.close()


class Stage:
    """Everything goes with `held`."""

    def __init__(
        self,
        box: Sandbox,
        held: contextlib.ExitStack,
        on_failure: OnFailure = OnFailure.OPEN,
        pins: Path | None = None,
        gates: int = 2,
        selection: Selection | None = None,
    ) -> None:
        self.box, self._held = box, held
        self._heartbeat = Map.create(MapKind.ARRAY, 4, 8, 1, "test_heartbeat")
        held.callback(self._heartbeat.close)
        network = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        held.callback(os.close, network)
        self.gates = [box.listener_v4, box.listener_v6][:gates]
        self.steering = Steering.open(
            [gate.fileno() for gate in self.gates],
            heartbeat_fd=self._heartbeat.fd,
            on_failure=on_failure,
            netns_fd=network,
        )
        held.callback(self.steering.close)
        self.steering.lead(on_failure, pins)
        self.hook = InboundHook.open(box.cgroup.path, selection=selection, steering=self.steering.maps, pin_folder=pins)
        held.callback(self.hook.close)
        self.legs = Legs(*self.steering.descriptors)
        self.agent = box.agent()
        self.beat()

    def beat(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._heartbeat.update(struct.pack("=I", 0), struct.pack("=Q", now))

    def stall(self) -> None:
        self._heartbeat.update(struct.pack("=I", 0), struct.pack("=Q", 1))

    def counts(self) -> list[int]:
        """How many listen at each place where anybody has."""
        served = Map(self.steering.maps.served, shared.SERVED.size, shared.LISTENS.size)
        found = [served.lookup(key) for key in list(served.keys())]
        return [shared.LISTENS.unpack(value)[0] for value in found if value is not None]

    def listen(self, address: str, port: int = 0) -> int:
        """The agent listens; on which port."""
        code = (
            f"l = socket.create_server(({address!r}, {port}), family=socket.AF_INET6 if ':' in {address!r} else "
            f"socket.AF_INET, dualstack_ipv6={address.startswith('::')}); answer = l.getsockname()[1]"
        )
        answer: int = self.agent(code)["answer"]
        (told,) = self.hook.drain()
        assert (told.kind, told.pid) == (InboundKind.LISTENS, self.agent.pid)
        return answer

    def call(self, address: str, port: int) -> socket.socket:
        return self._held.enter_context(socket.create_connection((address, port), 5))

    def led(self, *, v6: bool = False) -> socket.socket:
        """The connection that the gate has got."""
        accepted, _ = self.gates[v6].accept()
        return self._held.enter_context(accepted)

    def leg(self, accepted: socket.socket) -> Leg:
        leg = self.legs.begin(accepted)
        self._held.callback(leg.close)
        return leg
