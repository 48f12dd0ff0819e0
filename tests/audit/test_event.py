"""Who may say what: each kind of report belongs to the processes that can know it, and nobody else is believed."""

from __future__ import annotations

import pytest

from mitmsec.audit import event
from mitmsec.audit.event import PERMITTED, Seen
from mitmsec.core.messages import Role

OWNERS = {
    event.FlowHanded: {Role.GATE},
    event.ConnectionSeen: {Role.GATE, Role.SUPERVISOR},
    event.BytesSeen: {Role.GATE, Role.WORKER},
    event.RequestSeen: {Role.WORKER},
    event.FindingSeen: {Role.WORKER},
    event.SealedSeen: {Role.WORKER},
    event.ReviewSeen: {Role.SUPERVISOR, Role.CONSOLE},
    event.SecretsSeen: {Role.WORKER},
    event.CertificateSeen: {Role.SIGNER},
    event.PolicySeen: {Role.SUPERVISOR},
    event.CaSeen: {Role.SUPERVISOR},
    event.ServiceSeen: {Role.SUPERVISOR},
    event.FaultSeen: {Role.GATE, Role.WORKER, Role.SIGNER, Role.SUPERVISOR},
}


@pytest.mark.parametrize("kind", OWNERS, ids=lambda kind: kind.__name__)
def test_a_kind_is_believed_from_its_owners_only(kind: type[Seen]) -> None:
    assert {role for role, kinds in PERMITTED.items() if kind in kinds} == OWNERS[kind]


def test_no_kind_is_without_an_owner() -> None:
    assert set(Seen.__subclasses__()) == set(OWNERS)
