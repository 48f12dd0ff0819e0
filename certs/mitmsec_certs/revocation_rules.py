"""What revocation does to an origin's proof, given what is known of each certificate of its chain but the root.

staple ─► good ──────────────────────────────► nobody is asked about the origin's own certificate
   └─ none, or worthless ─► must it be there? ─► the proof does not hold, whatever the policy says
                              └─ no ─► the issuer's answer, as for every other certificate of the chain
"""

from __future__ import annotations

from collections.abc import Sequence

from mitmsec.core.model import Revocation
from mitmsec.core.origin_proof import Standing, Status
from mitmsec_certs.defects import Defect, untrusted

REVOKED = "the certificate was revoked"
ISSUER_REVOKED = "an issuer's certificate was revoked"


def by_staple(staple: Status | None, *, must_staple: bool) -> Defect | None:
    """The defect that an OCSP answer from the origin itself is, or that its absence is. None of both: ask."""
    if staple is not None and staple.standing is Standing.REVOKED:
        return untrusted(f"{REVOKED} ({staple.text})")
    if must_staple and (staple is None or staple.standing is not Standing.GOOD):
        why = "none came" if staple is None else staple.text
        return untrusted(f"the certificate is good only with an OCSP answer of its issuer's, stapled; {why}")
    return None


def by_answers(answers: Sequence[Status], mode: Revocation) -> tuple[Defect | None, str | None]:
    """The defect, and what is to be noted, given an answer for each certificate, the origin's own first."""
    for depth, answer in enumerate(answers):
        if answer.standing is Standing.REVOKED:
            return untrusted(f"{ISSUER_REVOKED if depth else REVOKED} ({answer.text})"), None
    unknown = next((answer.text for answer in answers if answer.standing is Standing.UNKNOWN), None)
    if unknown is None:
        return None, None
    text = f"it is not known whether the certificate was revoked: {unknown}"
    return (untrusted(text), None) if mode is Revocation.HARD else (None, text)
