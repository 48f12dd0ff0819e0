"""Nothing is decrypted but what the policy says, and all that it says: each flow goes through the gate's own mind, and
what that hands over through the engine.

What happens to a flow comes in the order in which it may; tests/fidelity_stage.py draws it, and says what is due;
tests/fidelity_play.py plays it, and says what is learned.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from fidelity_play import ENDS, Behind, Lessons, Played
from fidelity_stage import (
    HELLOS,
    NAMES,
    PROTOCOLS,
    READ,
    drawn_flow,
    drawn_policy,
    due,
    in_tunnel,
    said,
    with_hello,
)
from msgspec.structs import replace

from mitmsec.core.messages import HandOver
from mitmsec.core.policy import Policy
from mitmsec.gate.learned import Learned

PARTS, POLICIES, FLOWS_EACH = 4, 125, 200
LATE, AGAIN, OTHER_HELLO = 0.03, 0.25, 0.02  # that begin before a reload, that are like an earlier one, that lie

type Written = dict[str, Any]


def upgraded(draw: random.Random, flow: dict[str, Any]) -> dict[str, Any]:
    """For rules, its protocol stays what the dialogue was."""
    return with_hello(draw, flow | {"spoken": "tls", "name": draw.choice(NAMES)})


AFTER = {"smtp": upgraded, "http-proxy": in_tunnel, "socks": in_tunnel}  # what a dialogue goes on to
ENGINES = {"tls": "tls", "http": "http"}  # what the engine does with what is said; a dialogue passes as it is


class World:
    """One gate through all its policies, as far as flows see it: what is due of each, and what became of it."""

    def __init__(self, draw: random.Random) -> None:
        self._draw, self._learned, self._lessons = draw, Learned(), Lessons()
        self.found = Counter[tuple[str, str]]()
        self.pairs = 0
        self._orders: list[tuple[HandOver, dict[str, Any], bytes]] = []
        self._engines: list[str] = []  # what they are to do with these
        self._late: list[tuple[Played, Written]] = []

    def govern(self, written: Written, policy: Policy) -> None:
        """A reload: what was learned is forgotten; flows that have begun keep their policy."""
        self._learned.forget()
        self._lessons = Lessons()
        late, self._late = self._late, []
        earlier: list[dict[str, Any]] = []
        for number in range(FLOWS_EACH):
            flow = self._flow_like(earlier)
            earlier.append(flow)
            played = Played(f"{self.pairs}", policy, flow, self._draw, self._learned)
            self.pairs += 1
            if self._draw.random() < LATE:
                self._late.append((played, written))
            else:
                self._whole(played, written)
            if late and number % 10 == 0:
                self._whole(*late.pop())
                self.found["late", "whole"] += 1
        for each in late:
            self._whole(*each)
        self._carried()

    def close(self) -> None:
        for each in self._late:
            self._whole(*each)
        self._carried()

    def _flow_like(self, earlier: list[dict[str, Any]]) -> dict[str, Any]:
        """Any, or one that differs from an earlier one in nothing, or in one thing."""
        flow = drawn_flow(self._draw)
        if not earlier or self._draw.random() > AGAIN:
            return flow
        other = self._draw.choice(earlier)
        key = self._draw.choice(["at_s", "port", "user", "address"])
        return other | {key: flow[key]} if self._draw.random() < 0.3 else other

    def _whole(self, played: Played, written: Written) -> None:
        """From the first word to the end."""
        played.speak()
        self._is_as_due(played, written, played.flow["protocol"])
        flow = played.flow
        if played.done == ["read"] and flow["direction"] == "outbound" and (goes_on := AFTER.get(flow["protocol"])):
            played.upgrade(goes_on(self._draw, flow))
            self._is_as_due(played, written, f"then {played.flow['spoken']}", is_socks=flow["protocol"] == "socks")
        how = self._draw.choice([*ENDS, "refuses", "refuses"])
        if played.done == ["read"] and played.flow["spoken"] == "tls":
            self._lessons.told(written, played.flow, how)
        played.end(how)

    def _is_as_due(self, played: Played, written: Written, kind: str, *, is_socks: bool = False) -> None:
        flow = played.flow
        action = said(written, flow)
        wanted = due(action, flow["protocol"])
        if action == "decrypt" and wanted == "read" and self._lessons.passes(written, flow):
            wanted = "relayed"
            self.found["learned", kind] += 1
        if is_socks and flow["spoken"] in ("tls", "http") and flow["name"] is None and wanted == "read":
            wanted = "refused"  # a certificate for whom?
        assert played.done == [wanted], json.dumps([written, flow], default=str)
        self.found[kind, wanted] += 1
        assert (played.order is not None) == (wanted == "read")
        if played.order is not None:
            self._handed(played.order, flow)

    def _handed(self, order: HandOver, flow: dict[str, Any]) -> None:
        """An engine would have a dialogue and what it goes on to one after the other; here all at once."""
        instead, played_on = b"", self.found.total()
        if flow["spoken"] == "tls" and self._draw.random() < OTHER_HELLO:
            instead = HELLOS["x.evil.test" if flow["name"] == "test" else "test", flow["alpn"], flow["ech"]]
        apart = replace(order, flow=f"{order.flow}, {played_on}")
        does = "fault" if instead else ENGINES.get(flow["spoken"], "dialogue")
        if does != "dialogue" or played_on % 4 == 0:  # of those, which are not decrypted, some are enough
            self._orders.append((apart, flow, instead))
            self._engines.append(does)

    def _carried(self) -> None:
        """The engine does what it is there for with each, and with nothing that was not decided so."""
        done = Behind().carry(self._orders)
        assert done == self._engines
        self.found.update(("engine", each) for each in done)
        self._orders, self._engines = [], []


@pytest.mark.parametrize("part", range(PARTS))
def test_of_a_hundred_thousand_flows_exactly_those_are_decrypted_that_the_policy_says(part: int) -> None:
    draw = random.Random(20261130 + part)
    world = World(draw)
    for _ in range(POLICIES):
        world.govern(*drawn_policy(draw))
    world.close()
    assert world.pairs * PARTS == 100_000
    found = world.found
    kinds = [(one, "read") for one in READ]
    kinds += [(one, other) for one in PROTOCOLS for other in ("relayed", "refused")]
    kinds += [("engine", one) for one in ("tls", "http", "dialogue", "fault")]
    kinds += [("learned", "tls"), ("late", "whole")]
    assert {kind: found[kind] for kind in kinds if found[kind] < 25} == {}, "each happens, and often"
    thens = [("then tls", "relayed"), ("then tls", "refused"), ("then http", "refused"), ("learned", "then tls")]
    thens += [(f"then {one}", "read") for one in ("tls", "http", "smtp", "greeted")]
    assert [kind for kind in thens if not found[kind]] == [], "and each of these"
    assert {"then ssh", "then tcp"} <= {inner for inner, _ in found}
