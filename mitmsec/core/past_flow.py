"""A flow that is over, as far as it was recorded: what a policy was asked about it, and what one makes of it now.

    event of the log, flow of a capture ──► PastFlow ──► verdict: what becomes of such a flow under a policy
                                                    └──► unsettled: the rules that ask for what was not recorded

What is not on record is said to be unknown, and never guessed: it fulfils no condition, and a rule that asks for it
and might have come first is told.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from mitmsec.core.explain import Checked, Explanation, explain
from mitmsec.core.model import Action, Decision, Direction, Endpoint, OnFailure, Process, Quic, Transport, Value
from mitmsec.core.policy import DEFAULTS, Policy
from mitmsec.core.quic_outcome import QUIC_PORT, quic_outcome
from mitmsec.core.sniff import Protocol, Shown

CANNOT_DECIDE = "on_failure"  # the rule on record where mitmsec's own failure decided
READABLE = frozenset({Protocol.HTTP, Protocol.HTTP_PROXY})  # what workers read, beside TLS; all else is relayed


class PastFlow(Value, frozen=True):
    """One flow. `unknown` names the conditions of rules that nothing on record answers: host, protocol, …"""

    process: Process
    local: Endpoint
    remote: Endpoint
    """Where the program wanted to go, or who came."""
    at_s: float
    """When it began, Unix seconds."""
    transport: Transport = Transport.TCP
    direction: Direction = Direction.OUTBOUND
    protocol: Protocol | None = None
    """What its first bytes were; None: they are not known, or it is UDP, but for QUIC whose hello was read."""
    name: str | None = None
    """What it showed itself, comparable."""
    alpn: tuple[str, ...] = ()
    """What it offered."""
    ja4: str | None = None
    ech: bool | None = None
    is_tls: bool = False
    """Its hello was seen, be it after a dialogue in plaintext."""
    is_malformed: bool = False
    """Its first bytes claimed to be what they were not."""
    proven: bool | None = None
    """Whether a DNS answer gave the name this address; None: not on record."""
    unknown: frozenset[str] = frozenset()

    @property
    def shown(self) -> Shown:
        """What its first bytes told."""
        return Shown(protocol=self.protocol, name=self.name, alpn=self.alpn, ja4=self.ja4, ech=self.ech)

    @property
    def asked(self) -> Endpoint:
        """As rules are asked: of one that came in, the peer's address and the service's port."""
        if self.direction is Direction.OUTBOUND:
            return self.remote
        return Endpoint(address=self.remote.address, port=self.local.port)


class Verdict(Value, frozen=True):
    """What becomes of a flow, and by which rule: `defaults` and `on_failure` stand for themselves."""

    action: Action
    rule: str
    reason: str


def decision(policy: Policy, flow: PastFlow) -> Decision:
    """What the rules say. A name of which nobody knows whether it is proven is taken for proven, as `explain` does."""
    is_proven = flow.proven is not False
    said = policy.at_hello(
        flow.process, flow.asked, flow.at_s, shown=flow.shown, proven=is_proven, direction=flow.direction
    )
    takes_key = flow.direction is Direction.INBOUND and (flow.is_tls or flow.protocol is Protocol.TLS)
    return policy.with_key(said, flow.local, flow.name) if takes_key else said


def story(policy: Policy, flow: PastFlow) -> Explanation:
    """The whole of it, with every rule that was tried."""
    told = explain(policy, flow.process, flow.asked, flow.at_s, flow.shown, flow.direction)
    tried = tuple(replace(rule, conditions=tuple(_known(one, flow) for one in rule.conditions)) for rule in told.tried)
    return replace(told, decision=decision(policy, flow), tried=tried)


def _known(condition: Checked, flow: PastFlow) -> Checked:
    return replace(condition, why="it is not on record") if condition.key in flow.unknown else condition


def verdict(policy: Policy, flow: PastFlow) -> Verdict:
    """What becomes of the flow: not every decision can be carried out on every flow."""
    if refusal := _refused_quic(policy, flow):
        return refusal
    if not policy.can_judge(flow.process, flow.direction):
        is_closed = policy.on_failure is OnFailure.CLOSED and flow.transport is Transport.TCP
        reason = "what the policy asks about its program is not known"
        return Verdict(action=Action.BLOCK if is_closed else Action.BYPASS, rule=CANNOT_DECIDE, reason=reason)
    said = decision(policy, flow)
    return Verdict(action=_carried_out(policy, flow, said), rule=said.rule, reason=said.reason)


def _refused_quic(policy: Policy, flow: PastFlow) -> Verdict | None:
    if _is_quic(flow) and policy.quic is Quic.REFUSE:
        return Verdict(action=Action.BLOCK, rule=DEFAULTS, reason=f'quic = "{policy.quic}"')
    return None


def _is_quic(flow: PastFlow) -> bool:
    is_out = flow.direction is Direction.OUTBOUND
    return is_out and flow.transport is Transport.UDP and flow.remote.port == QUIC_PORT


def _carried_out(policy: Policy, flow: PastFlow, said: Decision) -> Action:
    if flow.transport is Transport.UDP:  # it passes, whatever was decided, but for QUIC that is led to the gate
        if not _is_quic(flow):
            return Action.BYPASS
        if policy.quic is Quic.BYPASS and _is_doubted(policy, flow, said):
            return Action.BLOCK
        return quic_outcome(policy, said, flow.shown).action
    if flow.is_malformed:
        early = policy.at_connect(flow.process, flow.asked, flow.at_s, flow.direction)
        return Action.BLOCK if early is None or early.action is Action.DECRYPT else early.action
    is_unreadable = flow.protocol is not None and flow.protocol not in READABLE and not flow.is_tls
    return Action.CAPTURE if said.action is Action.DECRYPT and is_unreadable else said.action


def _is_doubted(policy: Policy, flow: PastFlow, said: Decision) -> bool:
    """A bypass that is to be decrypted because nothing confirms the name, which over QUIC it cannot be."""
    if flow.proven is not False or said.action is not Action.DECRYPT:
        return False
    return decision(policy, replace(flow, proven=True)).action is Action.BYPASS


def unsettled(told: Explanation, flow: PastFlow) -> Iterator[tuple[str, str]]:
    """Each rule that might have come first, had more been on record, and the condition that asks for it."""
    for rule in told.tried:
        asked = [condition.key for condition in rule.conditions if condition.key in flow.unknown]
        if asked and all(condition.holds or condition.key in flow.unknown for condition in rule.conditions):
            yield rule.rule, asked[0]
        if rule.decided:
            return
