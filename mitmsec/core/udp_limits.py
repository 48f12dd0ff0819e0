"""What a policy says and UDP does not keep to, in sentences: its datagrams are on their way before anybody is asked.

Rules about names are about TCP: no datagram shows one. So only QUIC can slip by them, where the policy lets it pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.model import Action, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule

DNS_PORT, QUIC_PORT = 53, 443
SHOWN = 3


def udp_limits(policy: Policy) -> list[str]:
    """A sentence for each thing that somebody may expect of this policy in vain."""
    sentences = []
    if blocking := [rule.name for rule in policy.rules if _means_udp(rule, policy.quic)]:
        sentences.append(f"{_named(blocking)}: block holds for TCP only; UDP to there passes, and is recorded")
    if policy.action is Action.BLOCK:
        sentences.append("[defaults]: block holds for TCP only; UDP passes, and is recorded")
    if policy.quic is Quic.BYPASS and (
        by_name := [rule.name for rule in policy.rules if rule.asks_name and rule.action is not Action.BYPASS]
    ):
        sentences.append(
            f'{_named(by_name)}: quic = "bypass" lets programs reach these hosts by QUIC, whatever rules say'
        )
    return sentences


def _means_udp(rule: Rule, quic: Quic) -> bool:
    """It blocks whatever goes to a place, or to a port that is UDP's as well."""
    ports = {DNS_PORT} | ({QUIC_PORT} if quic is Quic.BYPASS else set())
    reaches = not rule.port or any(low <= port <= high for low, high in rule.port for port in ports)
    return rule.action is Action.BLOCK and not rule.asks_first_bytes and reaches


def _named(rules: Iterable[str]) -> str:
    names = [f'"{name}"' for name in rules]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"rule{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}{more}"
