"""The written policy as values: applications, rules, tests. What they mean is in selector, matcher and policy."""

from __future__ import annotations

from mitmsec.core.host_lists import CATEGORY
from mitmsec.core.model import (
    Action,
    Delivery,
    Direction,
    OnCertificateRequest,
    OnFinding,
    Revocation,
    TlsVersion,
    Transparency,
    Upstream,
    UpstreamTrust,
    Value,
)
from mitmsec.core.sniff import Protocol

CONDITIONS = ("application", "user", "host", "category", "port", "address", "protocol", "alpn", "ja4", "ech", "time")
"""The keys of a rule that hold always where they are absent; `direction` does not."""
DEFAULTS = "defaults"  # stands as the rule's name where no rule matched


class Application(Value, frozen=True):
    """Programs under one name. Every criterion that is given must hold; of a criterion's values, any."""

    name: str
    path: tuple[str, ...] = ()
    """Globs over the executable's path."""
    process_name: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    service: tuple[str, ...] = ()
    """Globs over the systemd unit; after `windows:`, over a service of Windows."""
    signer: tuple[str, ...] = ()
    """Globs over the signing certificate's subject; without `=`, over the common name in it."""
    container: tuple[str, ...] = ()
    """12 or more digits of the id, `runtime:` before them or not, or globs over `runtime:id`."""
    pid: tuple[int, ...] = ()
    children: bool = False
    """Also programs whose parent's executable is one of `path` (the parent that could still be read at connect).

    With `pid`: also those with one of these processes among their parents, as far as those are known.
    """


class Rule(Value, frozen=True):
    """A selector and an action. An empty condition holds always; of a condition's values, any."""

    name: str
    action: Action
    application: tuple[str, ...] = ()
    """Names of applications, or path globs."""
    host: tuple[str, ...] = ()
    """`a.example`: exactly it. `*.a.example`: everything below. `@file`: what this list of the policy holds."""
    category: tuple[str, ...] = ()
    """Shipped lists, by their names."""
    port: tuple[tuple[int, int], ...] = ()
    """Ranges, both ends included."""
    address: tuple[str, ...] = ()
    """Networks in CIDR notation."""
    user: tuple[str, ...] = ()
    """As whom the program runs: names, and numbers as text."""
    protocol: tuple[Protocol, ...] = ()
    """What the first bytes are, the client's or, where it speaks first, the server's."""
    alpn: tuple[str, ...] = ()
    """Globs, of which one matches a protocol name that a TLS client offers."""
    ja4: tuple[str, ...] = ()
    """Globs over the fingerprint of a TLS client."""
    ech: tuple[bool, ...] = ()
    """Whether a TLS client's hello has an encrypted one inside, or says so (GREASE); one of these."""
    time: tuple[str, ...] = ()
    """Times of the week, see mitmsec.core.hours."""
    expires: str = ""
    """When it has expired, as it is written."""
    expires_s: int | None = None
    """From this moment on it holds no more; Unix seconds."""
    owner: str = ""
    """Who answers for it."""
    reason: str = ""
    inspect: tuple[str, ...] | None = None
    """Inspectors; None: those of the defaults."""
    on_finding: OnFinding = OnFinding.ALERT
    keep_evidence: bool | None = None
    """Whether what is found is kept in the clear, for two people to see; None: as in the defaults."""
    delivery: Delivery = Delivery.HOLD
    learned_bypass: int | None = None
    """None: as in the defaults; so below."""
    on_certificate_request: OnCertificateRequest | None = None
    client_certificate: str | None = None
    """Whom the program is to an origin that asks for a certificate: the name of an identity."""
    upstream: Upstream | None = None
    upstream_trust: UpstreamTrust | None = None
    upstream_revocation: Revocation | None = None
    upstream_sct: Transparency | None = None
    min_tls: TlsVersion | None = None
    page: bool = False
    """What is blocked is told why inside TLS, too."""
    direction: Direction = Direction.OUTBOUND
    """Which connections it is about. Of an incoming one, `port` is that of the service, `address` the peer's."""

    @property
    def asks_first_bytes(self) -> bool:
        """Whether it has a condition that nothing but a connection's first bytes can fulfil."""
        return bool(self.asks_name or self.protocol or self.alpn or self.ja4 or self.ech)

    @property
    def is_of_quic_only(self) -> bool:
        """No first bytes over TCP fulfil it."""
        return set(self.protocol) == {Protocol.QUIC}

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of its lists among those of the policy."""
        return tuple(CATEGORY + category for category in self.category)

    @property
    def asks_name(self) -> bool:
        """Whether it has a condition that nothing but a name can fulfil."""
        return bool(self.host or self.category)

    @property
    def asks_process(self) -> bool:
        """Whether it has a condition on the program."""
        return bool(self.application or self.user)


class PolicyTest(Value, frozen=True):
    """One flow and what the policy must say to it. `line` is where it stands in the file."""

    application: str
    expect: Action
    host: str | None = None
    port: int = 443
    address: str = ""
    user: str | None = None
    service: str | None = None
    signer: str | None = None
    container: str | None = None
    protocol: Protocol | None = None
    """None: TLS where something of a hello is told, else not known."""
    alpn: tuple[str, ...] = ()
    ja4: str | None = None
    ech: bool | None = None
    """None: where it is TLS, there is none."""
    at_s: int | None = None
    """When it is; None: now."""
    rule: str | None = None
    direction: Direction = Direction.OUTBOUND
    line: int = 0
