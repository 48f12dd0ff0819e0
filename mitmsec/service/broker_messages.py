"""What is said to the broker, and by it.

supervisor ⇄ broker    BrokerSettings, ProducerUp → · ← Ready
worker ⇄ broker        RevocationQuestion → · ← RevocationAnswer
"""

from __future__ import annotations

from mitmsec.core.messages import Message
from mitmsec.core.origin_proof import Status


class BrokerSettings(Message, frozen=True):
    """fds: upstream roots (memfd, PEM). Issuers are asked about nobody's certificates but theirs."""


class RevocationQuestion(Message, frozen=True):
    """Were these revoked? `chain`: DER, verified, from a certificate to its root."""

    number: int
    chain: tuple[bytes, ...]


class RevocationAnswer(Message, frozen=True):
    """A status for each certificate of the chain but the root."""

    number: int
    statuses: tuple[Status, ...]
