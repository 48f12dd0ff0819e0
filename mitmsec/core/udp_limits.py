"""What a policy says and UDP does not keep to, in sentences: its datagrams are on their way before anybody is asked.

Rules about names are about TCP: of datagrams only QUIC's show one, where the connect hook leads them to
the gate. There it can be refused by name, and with `quic = "decrypt"` read. What is to be captured slips by
where the policy does not refuse QUIC, and what is to be decrypted where it lets QUIC pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.model import Action, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Protocol

DNS_PORT = 53
SHOWN = 3
UNREAD = {
    Quic.REFUSE: frozenset[Action](),
    Quic.BYPASS: frozenset({Action.CAPTURE, Action.DECRYPT}),
    Quic.DECRYPT: frozenset({Action.CAPTURE}),
}


def udp_limits(policy: Policy) -> list[str]:
    """A sentence for each thing that somebody may expect of this policy in vain."""
    sentences = []
    if blocking := [rule.name for rule in policy.rules if _means_udp(rule)]:
        sentences.append(f"{_named(blocking)}: block holds for TCP only; UDP to there passes, and is recorded")
    if policy.action is Action.BLOCK:
        sentences.append("[defaults]: block holds for TCP only; UDP passes, and is recorded")
    if unread := [rule.name for rule in policy.rules if _means_quic(rule) and rule.action in UNREAD[policy.quic]]:
        sentences.append(f'{_named(unread)}: quic = "{policy.quic}" lets programs reach these hosts by QUIC, unread')
    if policy.quic is Quic.BYPASS and (
        refused := [rule.name for rule in policy.rules if _means_quic(rule) and rule.action is Action.BLOCK]
    ):
        sentences.append(f"{_named(refused)}: of QUIC it holds by the connect hook, and by no other backend")
    if policy.quic is Quic.REFUSE and (idle := [rule.name for rule in policy.rules if rule.is_of_quic_only]):
        sentences.append(f'{_named(idle)}: quic = "refuse" refuses all QUIC, and no rule is asked')
    return sentences


def _means_quic(rule: Rule) -> bool:
    """It is about names, which QUIC shows as well, or about QUIC itself."""
    return Protocol.QUIC in rule.protocol or (rule.asks_name and not rule.protocol)


def _means_udp(rule: Rule) -> bool:
    """It blocks whatever goes to a place, or to a port that is UDP's as well."""
    reaches = not rule.port or any(low <= DNS_PORT <= high for low, high in rule.port)
    return rule.action is Action.BLOCK and not rule.asks_first_bytes and reaches


def _named(rules: Iterable[str]) -> str:
    names = [f'"{name}"' for name in rules]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"rule{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}{more}"
