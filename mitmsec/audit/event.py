"""What producers report and what the log holds.

A producer sends the facts that it knows; the recorder stamps sequence, time and producer, and adds the owner of the
flow as the gate told it. So a worker can neither name a process nor speak about a flow that it was not handed.
"""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.messages import Message, Role, TlsFacts
from mitmsec.core.model import (
    NOTHING_CLEAR,
    Action,
    Clear,
    Confidence,
    Direction,
    Endpoint,
    Finding,
    OnFinding,
    Process,
)


class Kind(StrEnum):
    """The kinds of an event in the log."""

    CA = "ca"
    CERTIFICATE = "certificate"
    CONNECTION = "connection"
    FAULT = "fault"
    FINDING = "finding"
    POLICY = "policy"
    REQUEST = "request"
    REVIEW = "review"
    SERVICE = "service"


class Outcome(StrEnum):
    """How a connection ended, or why it never became one."""

    BLOCKED = "blocked"  # the policy's block, or a finding's
    CLIENT_CLOSED = "client_closed"  # the program went away before anything was decided
    CLIENT_REJECTED = "client_rejected"  # the program did not accept our certificate (pinning)
    COMPLETED = "completed"
    CUT = "cut"  # the run or service ended first
    FAULT = "fault"  # ours; a fault event says more
    MALFORMED = "malformed"  # bytes that no parser accepts
    OPEN = "open"  # still alive when this was written
    ORIGIN_CERTIFICATE = "origin_certificate"  # see tls.server.error
    ORIGIN_REFUSED = "origin_refused"
    ORIGIN_RESET = "origin_reset"
    ORIGIN_TIMEOUT = "origin_timeout"
    ORIGIN_UNREACHABLE = "origin_unreachable"
    STRANGER = "stranger"  # nobody's hook diverted it
    UNSEEN = "unseen"  # of UDP: a socket was connected to it; whether anything was sent or came is not known


class NamedBy(StrEnum):
    """How the host of a connection is known, where it did not show it itself."""

    DNS = "dns"  # an answer that a program of the same run got from its resolver gave the name this address


OURS = "mitmsec"  # who answered a request that did not go on


class Seen(Message, frozen=True):
    """Base of what producers report to the recorder."""


# --- gate -------------------------------------------------------------------------------------------------------------
class FlowHanded(Seen, frozen=True):
    """From now on worker `worker` may report on `flow`. Not an event by itself."""

    flow: str
    process: Process
    worker: int
    host: str | None
    local: Endpoint | None = None  # with `remote`, where the flow is captured: the worker's pieces do not say
    remote: Endpoint | None = None
    direction: Direction = Direction.OUTBOUND
    keep_evidence_s: int | None = None  # as the decision has it


class ConnectionSeen(Seen, frozen=True):
    """A connection that ended, or (outcome `open`) has lived long. `flow` becomes the event's id."""

    flow: str
    process: Process
    protocol: str  # tls, http, ssh, smtp, dns, tcp, udp, quic, …
    local: Endpoint
    remote: Endpoint
    action: Action
    rule: str
    reason: str
    bytes_sent: int | None  # None: not counted
    bytes_received: int | None
    duration_ms: int
    outcome: Outcome
    host: str | None = None
    named_by: NamedBy | None = None  # None: the flow showed `host` itself
    asked: Endpoint | None = None  # what the program asked for, where another address of the name was reached instead
    error: str = ""
    tls: TlsFacts | None = None
    direction: Direction = Direction.OUTBOUND
    datagrams_sent: int | None = None  # of UDP flows; None: not counted
    datagrams_received: int | None = None
    session: str = ""  # from the supervisor; a gate's is that of its channel
    policy: str = ""  # the version that was in force when it began: mitmsec.core.policy.Policy.fingerprint
    through: str = ""  # a tunnel of this kind, asked of the proxy at `remote`: http-proxy, socks


class BytesSeen(Seen, frozen=True):
    """Bytes of a captured flow, as the client's side of the wire saw them. Goes to the capture file, not to the log."""

    flow: str
    sent: bool
    data: bytes
    process: Process | None = None  # with the first piece of a flow, from the gate
    local: Endpoint | None = None
    remote: Endpoint | None = None


# --- worker -----------------------------------------------------------------------------------------------------------
class RequestSeen(Seen, frozen=True):
    """One HTTP exchange. `url` carries no query values unless the policy asks for them.

    `outcome` is `blocked` where a finding kept the request from its origin. `answered_by` is OURS where the answer is
    not the origin's, but a page of ours that says why.
    """

    flow: str
    method: str
    url: str
    http_version: str
    status: int | None
    request_bytes: int
    response_bytes: int
    content_type: str | None = None
    outcome: Outcome | None = None
    answered_by: str | None = None
    seen_by: tuple[str, ...] = ()  # plain addons of mitmproxy's, by their files
    modified_by: tuple[str, ...] = ()


class FindingSeen(Seen, frozen=True):
    flow: str
    finding: Finding
    verdict: OnFinding
    item: str = ""  # the name under which its content is to lie in STATE/quarantine
    clear: Clear = NOTHING_CLEAR  # what was found, where the policy keeps it: for the vault, never for the log


class SealedSeen(Seen, frozen=True):
    """A piece of a file for STATE/quarantine, sealed already (mitmsec.core.quarantine). It is no event."""

    flow: str
    item: str
    at: int  # bytes of it came before
    data: bytes
    is_last: bool = False
    is_whole: bool = False  # nothing of the content is missing


class SecretsSeen(Seen, frozen=True):
    """Lines in NSS key log format for the client's leg of `flow`, for the capture file."""

    flow: str
    lines: bytes


# --- signer -----------------------------------------------------------------------------------------------------------
class CertificateSeen(Seen, frozen=True):
    flow: str
    serial: str  # hex
    names: tuple[str, ...]
    not_after: str  # RFC 3339, UTC
    flaw: str | None = None  # set for a deliberately invalid leaf that mirrors the origin's


# --- supervisor, and faults of anybody --------------------------------------------------------------------------------
class PolicySeen(Seen, frozen=True):
    session: str
    path: str
    sha256: str  # of the file's text
    policy: str  # SHA-256 of all that decides, lists and roots too: as connections name it
    rules: int
    on_failure: str
    certificates: tuple[str, ...] = ()  # SHA-256, hex, of those of its services; their keys are on no record


class CaSeen(Seen, frozen=True):
    operation: str  # created, …
    subject: str  # of the root
    sha256: str
    not_after: str
    detail: str = ""
    user: str | None = None


class ServiceSeen(Seen, frozen=True):
    operation: str  # run_started, run_ended, worker_started, …
    session: str = ""
    detail: str = ""
    user: str | None = None
    command: tuple[str, ...] = ()
    status: int | None = None


class ReviewSeen(Seen, frozen=True):
    """Somebody looked at what lies under quarantine, or did something in the console. It is on record before."""

    operation: str  # quarantine_released; signed_in, connection_opened, finding_dismissed, unmasked, exported, …
    item: str  # what it was done with: an item, an event's id, an account
    user: str
    people: tuple[str, ...]  # whose keys opened it, as the item calls them; in the console who else has a part in it
    keys: tuple[str, ...]  # the public ones, in the same order, in base64: as the policy has them
    detail: str = ""


class FaultSeen(Seen, frozen=True):
    """Anything that went wrong, and which way it failed."""

    what: str  # a short, stable word: stranger, worker_died, other_network_namespace, …
    detail: str = ""
    failed: str | None = None  # open | closed, where a choice was made
    flow: str | None = None
    pid: int | None = None
    session: str = ""
    count: int = 1


PERMITTED: dict[Role, tuple[type[Seen], ...]] = {
    Role.GATE: (FlowHanded, ConnectionSeen, BytesSeen, FaultSeen),
    Role.WORKER: (RequestSeen, FindingSeen, BytesSeen, SealedSeen, SecretsSeen, FaultSeen),
    Role.SIGNER: (CertificateSeen, FaultSeen),
    Role.SUPERVISOR: (PolicySeen, CaSeen, ServiceSeen, ReviewSeen, FaultSeen, ConnectionSeen),
    Role.BROKER: (),
    Role.CONSOLE: (ReviewSeen,),
    Role.DIVERTER: (),
    Role.RECORDER: (),
    Role.SCANNER: (),
}

__all__ = ["PERMITTED", "Confidence", "Kind", "Outcome", "Seen"]
