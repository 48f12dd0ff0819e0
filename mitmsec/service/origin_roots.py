"""Which roots origins may prove themselves by, as the policy and this machine have it."""

from __future__ import annotations

from collections.abc import Collection

from mitmsec.core.model import UpstreamTrust
from mitmsec.core.policy import Policy
from mitmsec.service.options import EXIT_PRIVILEGE
from mitmsec.service.refusals import CannotRun
from mitmsec_certs.bundle import Bundle
from mitmsec_certs.public_roots import marked, public_roots

NO_LIST = 'upstream_trust = "public": this machine has no list of the roots that its vendor ships'


def origin_roots(bundle: Bundle, policy: Policy, named: Collection[bytes]) -> bytes:
    """`bundle`, or what is public of it where no rule asks for more, and the roots (DER) that the policy names, as PEM
    for a worker.

    Raises CannotRun.
    """
    public, by_policy = public_roots(), frozenset(named)
    if UpstreamTrust.PUBLIC in policy.trusts and not public:
        raise CannotRun(NO_LIST, 'install the package ca-certificates, or write "system"', EXIT_PRIVILEGE)
    if policy.trusts == {UpstreamTrust.PUBLIC}:
        bundle = Bundle(roots=tuple(der for der in bundle.roots if der in public), sources=bundle.sources)
    return marked(bundle.adding(named), public, by_policy)


def doubt(policy: Policy) -> list[str]:
    """What `policy check` says about that."""
    return [NO_LIST] if UpstreamTrust.PUBLIC in policy.trusts and not public_roots() else []
