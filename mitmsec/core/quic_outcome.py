"""What becomes of QUIC (UDP to port 443) that rules are asked about, where the connect hook leads it to the gate.

`quic` in the policy's defaults says how far a rule's word goes: it is refused before any rule is asked, or passes
unread whatever a rule wants of it but `block`, or is read where it is HTTP/3 that shows a name, and else refused.
"""

from __future__ import annotations

from msgspec.structs import replace

from mitmsec.core.model import Action, Decision, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.rules import DEFAULTS
from mitmsec.core.sniff import Shown

QUIC_PORT = 443
HTTP3 = "h3"  # RFC 9114 §3.1


def quic_outcome(policy: Policy, said: Decision, shown: Shown) -> Decision:
    """The rules' word as it is carried out."""
    if policy.quic is Quic.REFUSE:
        return Decision(action=Action.BLOCK, rule=DEFAULTS, reason='quic = "refuse": programs are to use TCP')
    if said.action in (Action.BLOCK, Action.BYPASS):
        return replace(said, page=False)
    if policy.quic is Quic.BYPASS or said.action is Action.CAPTURE:
        reason = f'QUIC passes unread (quic = "{policy.quic}"); else {said.action}: {said.reason}'
        return replace(said, action=Action.BYPASS, reason=reason, inspect=())
    if shown.name is None or HTTP3 not in shown.alpn:
        lacks = "no name" if shown.name is None else f"no {HTTP3} by ALPN"
        reason = f"what cannot be read of QUIC is refused: it shows {lacks}; else decrypt: {said.reason}"
        return replace(said, action=Action.BLOCK, reason=reason, inspect=())
    return said
