"""What is said to the broker, and by it.

supervisor ⇄ broker    BrokerSettings, ProducerUp → · ← Ready
worker ⇄ broker        RevocationQuestion, ServerWanted → · ← RevocationAnswer, ServerLent
"""

from __future__ import annotations

from mitmsec.core.messages import Message
from mitmsec.core.origin_proof import Status


class BrokerSettings(Message, frozen=True):
    """fds: upstream roots (memfd, PEM). Issuers are asked about nobody's certificates but theirs. Connections are made
    to `servers` alone: those that the policy's inspectors ask. Of those, `clamds` are lent with INSTREAM said."""

    servers: tuple[str, ...] = ()
    clamds: tuple[str, ...] = ()


class RevocationQuestion(Message, frozen=True):
    """Were these revoked? `chain`: DER, verified, from a certificate to its root."""

    number: int
    chain: tuple[bytes, ...]


class RevocationAnswer(Message, frozen=True):
    """A status for each certificate of the chain but the root."""

    number: int
    statuses: tuple[Status, ...]


class ServerWanted(Message, frozen=True):
    """A connection to a server of an inspector's, by its address."""

    number: int
    address: str


class ServerLent(Message, frozen=True):
    """fds: the connection. None: there is none, and `error` says why."""

    number: int
    error: str = ""
