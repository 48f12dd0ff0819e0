"""What a policy allows the gate to learn: that a program's connections to a host cannot be decrypted, so they pass.

[defaults] or rule ── learned_bypass = 3 ──────────► after so many refusals of our certificate
                   ── on_certificate_request ──────► at once, where the origin asks for a client's certificate
said by neither    ── on_failure = "closed", or on_finding = "block" ──► never: nothing is to leave unread
                   └─ else ──► 3, "bypass"
"""

from __future__ import annotations

from mitmsec.core.model import Learning, OnCertificateRequest, OnFailure, OnFinding

REFUSALS = 3


def learning(
    after: int | None,
    on_request: OnCertificateRequest | None,
    *,
    hours: int,
    on_failure: OnFailure,
    on_finding: OnFinding,
    needs_proof: bool,
) -> Learning:
    """What holds where `after` and `on_request` are said, or left open (None)."""
    is_open = on_failure is OnFailure.OPEN and on_finding is OnFinding.ALERT
    if after is None:
        after = REFUSALS if is_open else 0
    passes = is_open if on_request is None else on_request is OnCertificateRequest.BYPASS
    return Learning(after=after, on_request=passes, hours=hours, needs_proof=needs_proof)
