"""The nouns that every part shares: frozen values, parsed once at the border and trusted afterwards."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from functools import lru_cache

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all values: immutable, slotted, compared by content, made with keywords."""


class Transport(StrEnum):
    """What carries a flow."""

    TCP = "tcp"
    UDP = "udp"


class Action(StrEnum):
    """What happens to a flow. The four words of the policy language."""

    BLOCK = "block"
    BYPASS = "bypass"
    CAPTURE = "capture"
    DECRYPT = "decrypt"


class OnCertificateRequest(StrEnum):
    """What becomes of connections to an origin that asks for a client's certificate, which we have not."""

    BLOCK = "block"
    BYPASS = "bypass"


class OnFailure(StrEnum):
    """Which way the network falls when mitmsec itself cannot decide or act."""

    CLOSED = "closed"
    OPEN = "open"


class OnFinding(StrEnum):
    """What an inspector's finding does to the flow it was found in."""

    ALERT = "alert"
    BLOCK = "block"
    QUARANTINE = "quarantine"  # as block; and it is kept, sealed to people who can open it together
    REDACT = "redact"  # it is masked and goes on; what cannot be masked is as with block


class Delivery(StrEnum):
    """What of a body waits for inspectors that can stop it."""

    HOLD = "hold"  # a small one of a request's as a whole; else each piece until it has been read
    TAIL = "tail"  # its end until all has been read; the rest goes on first
    WINDOW = "window"  # each piece until it has been read, and always its last bytes


class Upstream(StrEnum):
    """What an origin's invalid certificate does."""

    ACCEPT = "accept"
    BLOCK = "block"
    MIRROR = "mirror"


class UpstreamTrust(StrEnum):
    """Which roots origins may prove themselves by, beside those that the policy names."""

    SYSTEM = "system"  # all that the command would have used, or the system
    PUBLIC = "public"  # of these, the ones that the operating system's vendor ships


class Revocation(StrEnum):
    """What becomes of an origin where nobody can say whether its certificate was revoked."""

    SOFT = "soft"  # it goes on, recorded
    HARD = "hard"  # its proof does not hold
    OFF = "off"  # nobody is asked


class Transparency(StrEnum):
    """What a certificate of a public root without proof that it was logged does."""

    REPORT = "report"
    REFUSE = "refuse"
    OFF = "off"


class TlsVersion(StrEnum):
    """The least that both legs of a decrypted connection have to agree to."""

    TLS12 = "1.2"
    TLS13 = "1.3"


class Refusal(StrEnum):
    """How a program left that had seen our certificate and said nothing after it."""

    ALERT = "alert"  # saying that it does not accept the certificate
    CLOSED = "closed"
    RESET = "reset"


class Quic(StrEnum):
    """What happens to UDP/443 of selected programs."""

    BYPASS = "bypass"
    DECRYPT = "decrypt"
    REFUSE = "refuse"

    @property
    def unled(self) -> Quic:
        """What it means to who cannot lead QUIC to the gate: nothing passes that was to be decrypted."""
        return Quic.REFUSE if self is Quic.DECRYPT else self


class DnsEch(StrEnum):
    """What becomes of the keys for encrypted hellos in DNS answers for selected programs."""

    KEEP = "keep"
    STRIP = "strip"


class UnprovenName(StrEnum):
    """What a bypass by name becomes if no DNS answer gave that name the flow's address."""

    ALLOW = "allow"
    BLOCK = "block"
    DECRYPT = "decrypt"


class Direction(StrEnum):
    """Who opened the flow, seen from this machine."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Confidence(StrEnum):
    """How sure an attribution is, and by what. Never a guess presented as a fact."""

    KERNEL = (
        "kernel"  # the kernel named it at connect(), and it was read alive, or recorded (all of it), or its file known
    )
    TABLE = "table"  # found in a table of sockets afterwards
    INFERRED = "inferred"  # the kernel named the pid, but the process had gone (or changed) before it could be read
    UNKNOWN = "unknown"


class Fact(StrEnum):
    """What only Windows knows of a process, and may take a while to be found out."""

    PACKAGE = "package"
    SERVICES = "services"
    SIGNER = "signer"


@lru_cache(maxsize=4096)  # of a connection's two sides one is mostly known already, and to parse it takes long
def _canonical(address: str) -> str:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).compressed


class Endpoint(Value, frozen=True, order=True, array_like=True):
    """One side of a flow. `address` is canonical text; a v4-mapped address is written as IPv4."""

    address: str
    port: int  # 0..65535

    @classmethod
    def of(cls, address: str, port: int) -> Endpoint:
        """Parse `address` (a scope is dropped). Raises ValueError for anything that is no IP address or port."""
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port} is not within 0..65535")
        return cls(address=_canonical(address), port=port)

    @property
    def is_v6(self) -> bool:
        return ":" in self.address

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.is_v6 else f"{self.address}:{self.port}"


class Caller(Value, frozen=True):
    """Who called connect(), told by the kernel at that moment: what makes a pid and a path one process and one file.

    Starts are nanoseconds of CLOCK_BOOTTIME; the file's numbers are the kernel's own (mostly what stat() says).
    """

    start_ns: int
    parent: int = 0  # who will be told of its end; 0: nobody here
    parent_start_ns: int = 0
    device: int = 0  # of the executable's file system
    inode: int = 0  # 0: it has no executable
    ctime_ns: int = 0


class ParentProcess(Value, frozen=True):
    """The process that started another, as far as it could still be read, and its own parent in turn."""

    pid: int
    exe: str | None = None
    claimed_exe: str | None = None
    parent: ParentProcess | None = None


class Process(Value, frozen=True):
    """Who owns a flow. Fields that could not be read are None, never guessed.

    Of Windows' own facts, what is not among `unread` and yet None or empty, the process has not: on Linux none of them.
    """

    pid: int
    started: str | None = None  # RFC 3339, UTC
    exe: str | None = None  # the executable's path, where that is true on this machine
    claimed_exe: str | None = None  # the path that the process itself sees, where that is not; never matched
    name: str | None = None
    sha256: str | None = None  # of the executable, hex
    user: str | None = None  # name, or the number as text
    uid: int | None = None  # that number; on Windows there is none
    parent: ParentProcess | None = None
    unit: str | None = None  # systemd's; of a user's own manager behind its name: user@1000.service/app.service
    container: str | None = None  # runtime:id, likewise
    services: tuple[str, ...] = ()  # Windows' that run in it
    package: str | None = None  # the full name of its AppX or MSIX package
    signer: str | None = None  # the subject of the certificate that signed its executable, which Windows trusts
    unread: tuple[Fact, ...] = ()
    source: str = "connect_hook"
    confidence: Confidence = Confidence.UNKNOWN


LEARNED_HOURS = 12  # until what was learned is tried again


class Learning(Value, frozen=True):
    """What may be learned of the connections that one rule decrypts: that some of them cannot be, so that they pass."""

    after: int = 0  # refusals of our certificate, those with an alert counted whole and silent ones half; 0: never
    on_request: bool = False  # at once, where the origin asks for a client's certificate
    hours: int = LEARNED_HOURS
    needs_proof: bool = False  # only for a name that a DNS answer gave this address


NOTHING_LEARNED = Learning()


class LearnedBypass(Value, frozen=True):
    """The gate lets connections of a program to a host pass, because they could not be decrypted."""

    program: str
    user: str
    host: str
    port: int
    why: str
    left_s: int  # until it is tried again


class Decision(Value, frozen=True):
    """What the policy said, and why: `rule` is a rule's name or "defaults"."""

    action: Action
    rule: str
    reason: str
    inspect: tuple[str, ...] = ()
    on_finding: OnFinding = OnFinding.ALERT
    delivery: Delivery = Delivery.HOLD
    upstream: Upstream = Upstream.MIRROR
    trust: UpstreamTrust | None = None  # what the rule says itself; None: as the defaults do
    revocation: Revocation | None = None  # likewise
    sct: Transparency | None = None  # likewise
    min_tls: TlsVersion = TlsVersion.TLS12
    learning: Learning = NOTHING_LEARNED
    owner: str = ""  # who answers for the rule
    identity: str = ""  # whom the program is to an origin that asks for a certificate; empty: nobody
    page: bool = False  # a blocked client is told why inside TLS, too, which has to be decrypted for that
    service: str = ""  # the [[inbound]] with whose key it is decrypted; empty: under a certificate of ours
    keep_evidence_s: int | None = None  # evidence of findings is kept so long, 0: for ever; None: not at all


class Severity(StrEnum):
    """How much a finding matters."""

    HIGH = "high"
    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"


CLEAR_LIMIT_BYTES = 4096


class Clear(Value, frozen=True):
    """Something as it is, not redacted: printed by accident, as a value or in an error, it shows nothing of itself."""

    value: bytes = b""

    @classmethod
    def of(cls, what: bytes) -> Clear:
        """As much of it as is ever kept."""
        return cls(value=what[:CLEAR_LIMIT_BYTES])

    def __repr__(self) -> str:
        return f"Clear({len(self.value)} bytes)"


NOTHING_CLEAR = Clear()


class Finding(Value, frozen=True):
    """A claim about content. `evidence` is already redacted when a Finding is made."""

    detector: str
    severity: Severity
    confidence: float  # 0..1
    summary: str
    evidence: str
    location: str  # e.g. "request.body+1032", "request.url"
    offset: int | None = None  # of what was found, in the decoded content of its part
    size_bytes: int = 0  # of it; where both are told, it can be masked
    clear: Clear = NOTHING_CLEAR  # what was found; leaves a worker only where the policy keeps evidence
