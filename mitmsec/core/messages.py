"""What the processes say to each other. One message is one packet of a SOCK_SEQPACKET channel (mitmsec/channel.py).

    supervisor ⇄ gate      GateSettings, Drain → · ← Whose, Draining, Drained, WorkerHangs    WorkerUp →, WhoseAnswer →
                           UdpFlowTold →
                           Govern, Switch, FlowsQuestion → · ← Governed, Switched, FlowsAnswer
    supervisor ⇄ signer    SignerSettings →, ProducerUp →, CaReload → · ← SignerReady, Fault
    supervisor ⇄ worker    WorkerSettings → · ← Ready
    supervisor ⇄ recorder  RecorderSettings, ProducerUp → · ← Ready
    gate ⇄ signer          MintDecision, MintWithdrawn → · ← Crls
    gate ⇄ worker          HandOver, UpstreamAnswer → · ← Taken, UpstreamQuestion, Upgrading, FlowEnded
    worker ⇄ signer        MintQuestion → · ← MintAnswer
    worker ⇄ broker        mitmsec.service.broker_messages
    worker ⇄ scanner       mitmsec.service.scanner_messages
    producers → recorder   mitmsec.audit.event; ← Committed

Whoever reads a channel accepts only the kinds listed for it: a worker is what an attacker gets.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from mitmsec.core.address_names import Agreement
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.model import Caller, Decision, Direction, Endpoint, LearnedBypass, OnFailure, Process, Refusal, Value
from mitmsec.core.sniff import Protocol


class Message(Value, frozen=True, tag=True):
    """Base of all messages; the class name is the tag on the wire."""


class Role(StrEnum):
    """The processes, as they are named in commands, events and logs."""

    BROKER = "broker"
    CONSOLE = "console"
    DIVERTER = "diverter"
    GATE = "gate"
    RECORDER = "recorder"
    SCANNER = "scanner"
    SIGNER = "signer"
    SUPERVISOR = "supervisor"
    WORKER = "worker"


# --- any child ⇄ supervisor -------------------------------------------------------------------------------------------
class Ready(Message, frozen=True):
    """The child has its settings and serves."""


class ModulesQuestion(Message, frozen=True):
    """Which modules has this process loaded? So tests hold it to its row of the architecture."""


class ModulesAnswer(Message, frozen=True):
    modules: tuple[str, ...]


class PulseQuestion(Message, frozen=True):
    """Does this process's loop still turn? Asked of who has no heartbeat of its own."""


class PulseAnswer(Message, frozen=True):
    """It does."""


class Fault(Message, frozen=True):
    """Something went wrong inside a child that only its supervisor can act on or record."""

    what: str
    detail: str = ""


# --- supervisor ⇄ recorder --------------------------------------------------------------------------------------------
class RecorderSettings(Message, frozen=True):
    """fds: none. `folder` holds the log, `quarantine` what is sealed to people; both are the recorder's own."""

    folder: str
    quarantine: str = ""


class ProducerUp(Message, frozen=True):
    """fds: the producer's socket (for the signer: a gate's or worker's channel). Kinds are checked against `role`."""

    role: Role
    session: str = ""
    worker: int = -1


class CaptureOpen(Message, frozen=True):
    """fds: the capture file, opened with the caller's rights. Flows of `session` that arrive as packets go into it."""

    session: str
    command: str


class SessionFlush(Message, frozen=True):
    """Answer with SessionFlushed once every producer of `session` has ended and its last event is committed."""

    session: str


class SessionFlushed(Message, frozen=True):
    session: str
    connections: int = 0
    requests: int = 0
    findings: int = 0
    faults: int = 0


# --- supervisor ⇄ signer ----------------------------------------------------------------------------------------------
class SignerSettings(Message, frozen=True):
    """fds: the signer's channel to the recorder; where the key in `folder` is sealed, a memfd with what opens it."""

    folder: str


class CaReload(Message, frozen=True):
    """fds: as the second of SignerSettings. The CA's files have changed: read them. Answered SignerReady, or Fault."""


class SignerReady(Message, frozen=True):
    root_pem: str  # the roots that commands should trust, the CA's own first
    issuing_pem: str
    created: bool  # True when this start made the CA
    own_pem: str = ""  # certificates of CAs that nobody signs with but we
    subject: str = ""  # of the root
    sha256: str = ""  # of the root certificate, hex
    not_after: str = ""  # of the root, RFC 3339, UTC


# --- supervisor ⇄ gate ------------------------------------------------------------------------------------------------
class GateSettings(Message, frozen=True):
    """fds, in this order: policy (memfd, mitmsec.core.policy_packing), IPv4 listener, recorder channel,
    signer channel, what the backend gives its gate (mitmsec_redirect.backend.GateGround: origins map and heartbeat map,
    or a channel of expected flows and an eventfd, or an eventfd for the heartbeat alone), then the IPv6 listener where
    there is one. With `inward` there follow the maps of legs and of listeners (mitmsec_redirect.legs), and so many
    listeners for connections that come in."""

    session: str
    on_failure: OnFailure
    has_v6: bool
    capture: bool  # keep the bytes of decrypted and captured flows for the session's capture file
    names: bool = False  # there is one more fd, the last: the ring with DNS packets (mitmsec_redirect.dns_hook)
    relays: bool = False  # `DnsRelays` follows
    off: bool = False  # the kill switch has been thrown
    backend: str = "connect_hook"  # a BackendKind
    inward: int = 0
    local_ports: tuple[int, int] | None = None  # first and last: its own connections come from these, if not from any
    roots: bool = False  # the last fd is that of the roots (memfd, PEM) by which an origin can prove an unproven name
    hello_deadline_s: float = 0.3
    connect_deadline_s: float = 30.0
    heartbeat_s: float = 0.2


class DnsRelays(Message, frozen=True):
    """fds: the maps of servers and of what is behind (mitmsec_redirect.dns_lead), then sockets that DNS is led to."""


class QuicRelays(Message, frozen=True):
    """fds: the map of origins (mitmsec_redirect.origins), then sockets that QUIC is led to."""


class WorkerUp(Message, frozen=True):
    """fds: the gate's end of a channel to a new worker. Its end of file means that the worker has died.

    One in `reserve` gets no flows until `Govern` names it.
    """

    worker: int
    reserve: bool = False


class WorkerHangs(Message, frozen=True):
    """The worker lives, and does not take what it is handed: the gate has given it up, the supervisor is to end it."""

    worker: int


class Whose(Message, frozen=True):
    """Whose connection is this? Everything that the kernel recorded at connect(), or else its two ends."""

    number: int
    pid: int
    uid: int
    comm: str
    connected_ns: int = 0  # CLOCK_MONOTONIC of connect(): a process that started later is not its owner
    client: Endpoint | None = None  # as the gate sees it; with it there is no word of the kernel's, and `pid` is 0
    remote: Endpoint | None = None  # where `client` was going
    caller: Caller | None = None  # None: the kernel's hook cannot tell
    selected: bool = False  # at connect(), under a standing selection; False: nobody had judged it yet
    told: Process | None = None  # as it was read before the connection began, where a backend does that


class WhoseAnswer(Message, frozen=True):
    """Under a standing selection a process may turn out not to be `selected`: its connection is nobody's business."""

    number: int
    process: Process
    selected: bool = True


class UdpFlowTold(Message, frozen=True):
    """A UDP flow as the kernel saw it: it went past the gate, which puts it on record under the policy."""

    flow: str  # becomes the event's id
    process: Process
    local: Endpoint  # address 0.0.0.0 or ::, or port 0, where the kernel had not chosen one yet
    remote: Endpoint
    direction: Direction
    duration_ms: int
    ended: bool  # False: it lives, and has for long; its end is still to be told
    sent: int | None = None  # datagrams; None: not counted
    received: int | None = None
    seen: bool = True  # a datagram was; else only that a socket was connected


class Govern(Message, frozen=True):
    """fds: policy, and the roots by which an origin can prove an unproven name (memfd, PEM), where it asks for them.
    It and these terms hold for new flows; live ones keep what they were decided under."""

    on_failure: OnFailure
    workers: tuple[int, ...]  # those that new flows go to; the others end with their last flow


class Governed(Message, frozen=True):
    """The answer to `Govern`: every flow that is accepted from now on is decided under it."""


class Switch(Message, frozen=True):
    """The kill switch. Off: nothing is decrypted any more, and what is being decrypted is cut. Answered `Switched`."""

    off: bool


class Switched(Message, frozen=True):
    cut: int  # decrypted flows that had to be cut


class FlowsQuestion(Message, frozen=True):
    """How many flows live?"""


class FlowsAnswer(Message, frozen=True):
    live: int
    decrypted: int
    learned: tuple[LearnedBypass, ...] = ()  # the newest of them


class Drain(Message, frozen=True):
    """Accept nothing more; end by yourself when the live flows have, or after `grace_s`."""

    grace_s: float


class Drained(Message, frozen=True):
    """All flows have ended and their events are with the recorder."""

    cut: int  # flows that had to be cut


class Draining(Message, frozen=True):
    """Not yet all; but more of it is on disk than when this was said last."""


# --- gate → signer, worker ⇄ signer -----------------------------------------------------------------------------------
class MintDecision(Message, frozen=True):
    """The gate's word that `flow` is to be decrypted under exactly `name`. Nobody else's word counts."""

    flow: str
    name: str  # a host name in lower case, or an IP address


class MintWithdrawn(Message, frozen=True):
    """`flow` has ended: a decision that nobody used is forgotten."""

    flow: str


class Crls(Message, frozen=True):
    """Signer → gate: the revocation lists that clients may ask for, DER, by their paths (mitmsec.core.crl_place)."""

    lists: tuple[tuple[str, bytes], ...]


class Flaw(StrEnum):
    """How an origin's certificate fails; the client is to see a failure of the same kind."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNTRUSTED = "untrusted"
    WRONG_NAME = "wrong_name"


class MintQuestion(Message, frozen=True):
    """Once a flow. Neither name nor key is the worker's to choose."""

    number: int
    flow: str
    key: LeafKeyKind = LeafKeyKind.P256
    not_after_s: int | None = None  # the origin's own notAfter, Unix seconds
    flaw: Flaw | None = None


class MintAnswer(Message, frozen=True):
    """DER certificates, leaf first, without the root, and the leaf's key (PKCS #8, DER); or why there are none."""

    number: int
    chain: tuple[bytes, ...] = ()
    key: bytes = b""
    error: str = ""


# --- supervisor → worker ----------------------------------------------------------------------------------------------
class WorkerSettings(Message, frozen=True):
    """fds, in this order: gate channel, signer channel, recorder channel, upstream roots (memfd, PEM), the policy
    (memfd) where `inspectors` are in it, the keys of its services (memfd) where it decrypts what comes in."""

    session: str
    worker: int
    on_failure: OnFailure
    capture: bool
    inspectors: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name, its words (e.g. keyword lists)
    own_pem: str = ""  # certificates of our own CA: no origin proves itself by them
    broker: bool = False  # there is one more fd: the channel to the broker
    scanner: bool = False  # and one more, the last: the channel to the scanner
    quic: bool = False  # it is decrypted, too


# --- gate ⇄ worker ----------------------------------------------------------------------------------------------------
class Plaintext(StrEnum):
    """What the gate saw in the first bytes of a flow that it hands over."""

    DIALOGUE = "dialogue"  # of a protocol that may go on under TLS, see HandOver.protocol
    HTTP = "http"
    QUIC = "quic"  # with HTTP/3
    TLS = "tls"


class HandOver(Message, frozen=True):
    """fds: the client's socket with its first bytes unread, the connected origin's. The worker owns both now.

    Of a flow that is blocked, of which a page is to tell, it is the client's alone.
    Of QUIC: the ends of two pairs, to which the gate relays the client's datagrams and the origin's, and back.
    """

    flow: str
    kind: Plaintext
    name: str  # the decided name: SNI or Host, else the origin's address
    origin: Endpoint
    client: Endpoint
    decision: Decision
    direction: Direction = Direction.OUTBOUND
    http3: bool = True  # its program may use it; else it is not to hear of it from origins
    http3_led: bool = False  # where that is led to the gate, and nowhere else
    owner: str = ""  # the process, told apart from all others; flows without one share nothing
    protocol: Protocol | None = None  # of a dialogue: one of mitmsec.core.sniff.UPGRADABLE, TUNNELS
    port: int = 0  # the one that the client means, where `origin` is a proxy that led it there; 0: the origin's
    hello: bytes = b""  # of QUIC, as mitmsec.core.clienthello.parse_message reads it


class Taken(Message, frozen=True):
    """Sent soon after a HandOver, unless more was said of the flow by then: so the gate knows that somebody reads."""

    flow: str


class Upgrading(Message, frozen=True):
    """Both ends of a dialogue have agreed to TLS, and the worker has let go of both sockets: the client's hello lies
    unread, or will. Counts are bytes on the client's leg so far. The gate decides again, by the name in the hello.
    """

    flow: str
    bytes_sent: int
    bytes_received: int
    port: int = 0  # of a tunnel: where the client asked the proxy to lead; 0: not told


class UpstreamQuestion(Message, frozen=True):
    """The worker needs another connection to the origin that was decided for `flow`."""

    flow: str
    number: int


class UpstreamAnswer(Message, frozen=True):
    """fds: the connected socket, unless `error` says why there is none."""

    flow: str
    number: int
    error: str = ""


class TlsClientFacts(Value, frozen=True):
    version: str | None = None
    cipher: str | None = None
    group: str | None = None  # of the key exchange
    refusal: Refusal | None = None  # how it left, where our certificate may be why
    exceeds_server: str | None = None  # in what the client was told more than the server has: version, cipher, group
    sni: str | None = None
    alpn: str | None = None
    offers: tuple[str, ...] | None = None  # of protocols, by ALPN; None: no hello was read, or it offers very many
    ja4: str | None = None
    ech: bool | None = None  # an encrypted hello (or its GREASE) was inside, and `sni` is the public name
    name_agrees: Agreement | None = None  # what DNS answers say to the SNI; None: nobody looks at them
    name_certified: bool | None = None  # the origin's certificate proves it, to the gate; None: it was not asked for


class TlsServerFacts(Value, frozen=True):
    version: str | None = None
    cipher: str | None = None
    group: str | None = None
    alpn: str | None = None
    certificate_sha256: str | None = None
    asks_certificate: bool | None = None  # of its clients, and we had none to show
    client_certificate: str | None = None  # the name of the one that it was shown
    verified: bool | None = None  # for a resumed session: when it began
    resumed: bool | None = None
    error: str | None = None
    note: str | None = None  # what is to be said of a certificate that was verified


class TlsFacts(Value, frozen=True):
    client: TlsClientFacts | None = None
    server: TlsServerFacts | None = None


class FlowEnded(Message, frozen=True):
    """The worker has closed both sockets. Counts are bytes on the client's leg as the network saw them."""

    flow: str
    bytes_sent: int
    bytes_received: int
    outcome: str  # see mitmsec.audit.event.Outcome
    error: str = ""
    tls: TlsFacts | None = None
    was_heard: bool = False  # the client has said something inside TLS: it took the certificate
    reset: bool = False  # the client is to see a reset, not an orderly end


# --- recorder → producer ----------------------------------------------------------------------------------------------
class Committed(Message, frozen=True):
    """`count` messages of this producer, from its first, are on disk; `failing`: the disk takes nothing for now."""

    count: int
    failing: bool = False


def encode(message: Message) -> bytes:
    """`message` as one packet."""
    return _ENCODER.encode(message)


_ENCODER = msgspec.msgpack.Encoder()
