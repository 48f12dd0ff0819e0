"""A UDP flow on record: it went past the gate, unread, and the policy's word on it is the reason that is given.

A rule's `block`, `capture` or `decrypt` cannot be carried out: the datagrams were on their way before anybody was
asked. So what was done is always `bypass`, under the rule that decides, and the reason says what became of its word.
"""

from __future__ import annotations

from mitmsec.audit.event import ConnectionSeen, NamedBy, Outcome
from mitmsec.core.messages import UdpFlowTold
from mitmsec.core.model import Action, Direction, Endpoint
from mitmsec.core.sniff import NOTHING_SHOWN
from mitmsec.gate.terms import Decides

PORT_NAMES = {53: "dns", 443: "quic", 5353: "dns"}  # nobody looks inside: it is what goes to this port by custom
CANNOT_DECIDE = "on_failure"
UNJUDGED = "what the policy asks about its program could not be read; UDP passes unread"
PASSES = {
    Action.BLOCK: "UDP passes all the same: a rule cannot block it",
    Action.BYPASS: "UDP passes unread",
    Action.CAPTURE: "UDP passes, and is not captured",
    Action.DECRYPT: "UDP passes unread",
}


def seen(
    told: UdpFlowTold, policy: Decides, resolved: tuple[str, ...] | None = None, fingerprint: str = ""
) -> ConnectionSeen:
    """The event of a flow that has ended, or lives long. `resolved`: the names that DNS gave its remote.

    `fingerprint` is the policy's.
    """
    rule, reason = _decided(told, policy)
    return ConnectionSeen(
        flow=told.flow,
        process=told.process,
        protocol=protocol_of(told),
        local=told.local,
        remote=told.remote,
        host=resolved[0] if resolved else None,
        named_by=NamedBy.DNS if resolved else None,
        direction=told.direction,
        action=Action.BYPASS,
        rule=rule,
        reason=reason,
        bytes_sent=None,
        bytes_received=None,
        datagrams_sent=told.sent,
        datagrams_received=told.received,
        duration_ms=told.duration_ms,
        outcome=_outcome(told),
        policy=fingerprint,
    )


def _outcome(told: UdpFlowTold) -> Outcome:
    """Of one that is only known to have been connected, nothing was completed: that may be all that there was."""
    if not told.ended:
        return Outcome.OPEN
    return Outcome.COMPLETED if told.seen else Outcome.UNSEEN


def protocol_of(told: UdpFlowTold) -> str:
    """By the port of whoever was spoken to: of a program that was, its own."""
    served = told.local if told.direction is Direction.INBOUND else told.remote
    return PORT_NAMES.get(served.port, "udp")


def _decided(told: UdpFlowTold, policy: Decides) -> tuple[str, str]:
    """The rule for a flow without a name, which no datagram shows, and why that passed."""
    if not policy.can_judge(told.process, told.direction):
        return CANNOT_DECIDE, UNJUDGED
    is_inbound = told.direction is Direction.INBOUND
    asked = Endpoint(address=told.remote.address, port=told.local.port) if is_inbound else told.remote
    decision = policy.at_hello(told.process, asked, shown=NOTHING_SHOWN, direction=told.direction)
    return decision.rule, f"{decision.reason}; {PASSES[decision.action]}"
