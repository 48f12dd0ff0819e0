"""Nothing is decrypted but what the policy says, and all that it says: each flow goes through the gate's own mind.

What happens to a flow comes in the order in which it may; tests/fidelity_stage.py draws it, and says what is due.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from fidelity_stage import HELLOS, NAMES, READ, bytes_of, drawn_flow, drawn_policy, due, said, with_hello

from mitmsec.core.messages import FlowEnded, Upgrading
from mitmsec.core.model import Confidence, Direction, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.gate import signals as s
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.inward import Inward
from mitmsec.gate.learned import Learned
from mitmsec.gate.names import Names
from mitmsec.gate.terms import Terms

POLICIES, FLOWS_EACH = 500, 200
CLIENT, GATE = Endpoint(address="127.0.0.1", port=40000), Endpoint(address="127.0.0.1", port=8000)
GREETING = b"220 mail.example ESMTP\r\n"


class Played:
    """A flow in the gate's mind, and the world around it as far as it asks for it."""

    health = type("Health", (), {"off": False, "recording": True, "signing": True})()
    terms = Terms(on_failure=OnFailure.CLOSED, capture=True)

    def __init__(self, policy: Policy, flow: dict[str, Any], draw: random.Random) -> None:
        self._draw, self._flow = draw, flow
        self._remote = Endpoint(address=flow["address"], port=flow["port"])
        decides: Any = policy
        if flow["direction"] == "inbound":  # the service is ours, and the address the peer's
            decides = Inward(policy, self._remote)
        self.mind = Flow("f", self.terms, decides, Names(), self.health, Learned())
        if flow["direction"] == "inbound":
            self.mind.about.direction = Direction.INBOUND
        self.done: list[str] = []  # what was done to its bytes
        self._dialled = False

    def play(self) -> None:
        flow = self._flow
        origin = s.Origin(remote=self._remote, pid=7, uid=1000, comm="x")
        self.tell(s.Accepted(CLIENT, GATE, origin, float(flow["at_s"])))
        exe, user = flow["exe"], flow["user"]
        self.tell(s.OwnerKnown(Process(pid=7, exe=exe, name="x", user=user, confidence=Confidence.KERNEL)))
        if flow["spoken"] == "greeted":
            return self._greeted()
        self._maybe_connected()
        data = bytes_of(flow)
        if self._draw.random() < 0.3:
            self.tell(s.FirstBytes(data[: self._draw.randrange(1, len(data))]))
            self._maybe_connected()
        self.tell(s.FirstBytes(data))
        self._connected()

    def _greeted(self) -> None:
        """Its client waits, so the gate has to contact the server before it can know, unless nobody may be."""
        if not self._dialled:
            self.tell(s.Deadline())
        self._connected()
        self.tell(s.ServerSpoke(GREETING))

    def upgrade(self, flow: dict[str, Any]) -> None:
        """The worker has let go: both ends have agreed to TLS."""
        self.done.clear()
        self.tell(s.WorkerUpgrades(Upgrading(flow="f", bytes_sent=1, bytes_received=1)))
        self.tell(s.FirstBytes(HELLOS[flow["name"], flow["alpn"], flow["ech"]]))

    def _maybe_connected(self) -> None:
        if self._draw.random() < 0.5:
            self._connected()

    def _connected(self) -> None:
        if self._dialled:
            self._dialled = False
            self.tell(s.Dialled(self._remote))

    def tell(self, event: s.AnyEvent) -> None:
        for command in self.mind.told(event, 0.0):
            match command:
                case s.Dial():
                    self._dialled = True
                case s.Staff():
                    self.tell(s.Staffed(1))
                case s.Hand():
                    self.done.append("read")
                case s.Relay():
                    self.done.append("relayed")
                case s.Reset() | s.Page():
                    self.done.append("refused")
                case _:
                    pass

    def end(self) -> None:
        if self.mind.state is State.HANDED:
            self.tell(s.WorkerSaid(FlowEnded(flow="f", bytes_sent=1, bytes_received=1, outcome="completed")))


def test_of_a_hundred_thousand_flows_exactly_those_are_decrypted_that_the_policy_says() -> None:
    draw, pairs, found = random.Random(20261130), 0, Counter[tuple[str, str]]()
    for _ in range(POLICIES):
        written, policy = drawn_policy(draw)
        for flow in (drawn_flow(draw) for _ in range(FLOWS_EACH)):
            played = Played(policy, flow, draw)
            played.play()
            wanted = due(said(written, flow), flow["protocol"])
            assert played.done == [wanted], (written, flow)
            found[flow["protocol"], wanted] += 1
            pairs += 1
            if wanted == "read" and flow["protocol"] == "smtp" and flow["direction"] == "outbound":
                upgraded = with_hello(draw, flow | {"name": draw.choice(NAMES)})
                played.upgrade(upgraded)
                wanted = due(said(written, upgraded), "tls")
                assert played.done == [wanted], (written, upgraded)
                found["upgrade", wanted] += 1
            played.end()
    assert pairs == 100_000
    kinds = [*((one, "read") for one in READ), ("upgrade", "read"), ("upgrade", "relayed"), ("upgrade", "refused")]
    kinds += [(one, other) for one in ("tls", "http", "smtp", "ssh", "tcp") for other in ("relayed", "refused")]
    assert {kind: found[kind] for kind in kinds if found[kind] < 100} == {}, "each happens, and often"
