"""The policy: ordered rules, first match wins, else the defaults. Two questions, each asked once a connection:

    at_connect  process, address, port            → the decision, or None: its first bytes could change it
    at_hello    … and what these show, if anything → the decision

Both are about one moment, that at which the connection began: what changes while it is decided changes it no more.
Each is asked about one direction, and answered by its rules alone. Of a connection that comes in, the process is who
listens, and `remote` the peer's address with the port of the service. What is decrypted of those that come in is asked
once more, as soon as TLS is seen (`with_key`): it takes the key of a service.

`at_connect` answers only what `at_hello` would answer whatever is shown, so an early answer is never another answer.
Same rule is same answer; two rules are two answers, whatever their actions. While a client says nothing, `at_silence`
says whether its origin may be contacted, which may be the one that speaks first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import msgspec
from msgspec.structs import replace

from mitmsec.core.dns_offers import Offers
from mitmsec.core.host_lists import HostList, Listed
from mitmsec.core.hours import Zones
from mitmsec.core.identity import Identity
from mitmsec.core.inspection import ASKS_SERVER, SCANS, server_address
from mitmsec.core.known_service import KnownService, service_for
from mitmsec.core.learning import learning
from mitmsec.core.matcher import Matcher
from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.core.model import (
    LEARNED_HOURS,
    NOTHING_LEARNED,
    Action,
    Decision,
    Direction,
    DnsEch,
    Endpoint,
    Learning,
    OnCertificateRequest,
    OnFailure,
    Process,
    Quic,
    Revocation,
    TlsVersion,
    Transparency,
    UnprovenName,
    Upstream,
    UpstreamTrust,
    Value,
)
from mitmsec.core.quarantine import Recipient
from mitmsec.core.retention import Retention
from mitmsec.core.rules import DEFAULTS, Application, PolicyTest, Rule
from mitmsec.core.sniff import Shown

__all__ = ["DEFAULTS", "DEFAULT_POLICY", "Application", "Policy", "PolicyTest", "Rule"]

LANGUAGE_VERSION = 1
_SHOWN_VALUES = 3  # of a condition, in a sentence


class Policy(Value, frozen=True, dict=True):
    """A complete policy; of its lists the names may be elsewhere. Goes through JSON and back unchanged.

    Made by mitmsec.config from a file, where everything is checked; a rule that names no existing application
    raises KeyError at the first question, and a name whose lists are elsewhere LookupError.
    """

    version: int = LANGUAGE_VERSION
    action: Action = Action.DECRYPT
    inbound: Action = Action.BYPASS
    """Where no rule for incoming connections matches one."""
    on_failure: OnFailure = OnFailure.OPEN
    quic: Quic = Quic.REFUSE
    dns_ech: DnsEch = DnsEch.KEEP
    unproven_name: UnprovenName = UnprovenName.ALLOW
    upstream: Upstream = Upstream.MIRROR
    upstream_roots: tuple[str, ...] = ()
    """PEM files, as the policy file names them: relative to it."""
    root_sha256s: tuple[str, ...] = ()
    """Of the certificates in them, hex, in their order."""
    upstream_trust: UpstreamTrust = UpstreamTrust.SYSTEM
    upstream_revocation: Revocation = Revocation.SOFT
    upstream_sct: Transparency = Transparency.REPORT
    learned_bypass: int | None = None
    """After how many refusals of our certificate a program's connections to that host pass; None: see core.learning."""
    learned_bypass_hours: int = LEARNED_HOURS
    on_certificate_request: OnCertificateRequest | None = None
    inspect: tuple[str, ...] = ()
    """For every decrypting rule that names no inspectors of its own, and for decrypting defaults."""
    keep_evidence: bool = False
    """For every decrypting rule that does not say it itself."""
    retention: Retention = Retention()
    applications: tuple[Application, ...] = ()
    rules: tuple[Rule, ...] = ()
    tests: tuple[PolicyTest, ...] = ()
    inspectors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What each configured inspector looks for."""
    lists: tuple[HostList, ...] = ()
    """All that rules name."""
    services: tuple[KnownService, ...] = ()
    """Those whose key is known, for connections that come in."""
    zones: Zones = ()
    """Those in whose time its rules think."""
    identities: tuple[Identity, ...] = ()
    """Those that programs can be to origins."""
    recipients: tuple[Recipient, ...] = ()
    """Who can open what is put under quarantine, any two of them together."""
    mitmproxy_addons: tuple[MitmproxyAddon, ...] = ()
    """Asked about every decrypted HTTP exchange, in this order."""

    @property
    def without_names(self) -> Policy:
        """It, and of its lists only the references: hashes stand for the names."""
        return replace(self, lists=tuple(one.reference for one in self.lists)) if self.lists else self

    @property
    def encoded(self) -> bytes:
        """All that decides, as JSON: what its files held is inside, its lists by their hashes, and of keys nothing."""
        return msgspec.json.encode(self.without_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `encoded`: the name of this version in events and in the state directory."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def offers(self) -> Offers:
        """What DNS answers may offer programs."""
        return Offers(ech=self.dns_ech is DnsEch.KEEP, h3=self.quic is not Quic.REFUSE)

    @property
    def servers(self) -> tuple[str, ...]:
        """Addresses that its inspectors ask."""
        named = (word for name, words in self.inspectors if name in ASKS_SERVER for word in words)
        return tuple(map(server_address, named))

    @property
    def clamds(self) -> tuple[str, ...]:
        """Those of `servers` that speak clamd's protocol."""
        return tuple(word for name, words in self.inspectors if name == "malware" for word in words)

    @property
    def scans(self) -> bool:
        """Whether workers must have a scanner to ask."""
        return any(name == SCANS for name, _ in self.inspectors)

    @property
    def trusts(self) -> frozenset[UpstreamTrust]:
        """All that its rules and defaults say of that."""
        return frozenset({self.upstream_trust, *(rule.upstream_trust for rule in self.rules if rule.upstream_trust)})

    @property
    def needs_workers(self) -> bool:
        """Whether any flow may go to one: to be decrypted, or to be shown a page inside TLS."""
        if Action.DECRYPT in (self.action, self.inbound):
            return True
        return any(rule.action is Action.DECRYPT or rule.page for rule in self.rules)

    @property
    def needs_keys(self) -> bool:
        """Whether workers must have any keys."""
        return self.decrypts_inbound or bool(self.identities)

    @property
    def key_bytes(self) -> int:
        """How much of the file with all keys they must have: the identities' are in front, the services' behind."""
        of_services = sum(one.key_bytes for one in self.services) if self.decrypts_inbound else 0
        return sum(one.key_bytes for one in self.identities) + of_services

    @property
    def certificates(self) -> tuple[str, ...]:
        """SHA-256 (hex) of all whose keys it names."""
        return tuple(one.sha256 for one in self.identities) + tuple(one.sha256 for one in self.services)

    @property
    def governs_inbound(self) -> bool:
        """Whether a connection that comes in may do anything else than that, or a rule asks what it shows: the gate
        must have it then.
        """
        asks = any(rule.asks_first_bytes for rule in self.rules if rule.direction is Direction.INBOUND)
        return asks or not self._inbound_actions <= {Action.BYPASS}

    @property
    def decrypts_inbound(self) -> bool:
        """Whether any that comes in may be decrypted: the workers must have the services' keys then."""
        return Action.DECRYPT in self._inbound_actions

    @property
    def _inbound_actions(self) -> set[Action]:
        return {self.inbound, *(rule.action for rule in self.rules if rule.direction is Direction.INBOUND)}

    def can_judge(self, process: Process, direction: Direction = Direction.OUTBOUND) -> bool:
        """Whether everything is known about `process` that its rules ask.

        Where it is not, the two questions below answer as if a rule that asks for the unknown did not apply. Who is to
        act on that must not: the rule may be the one that says bypass or block.
        """
        return self._matcher(direction).can_judge(process)

    def at_connect(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.OUTBOUND
    ) -> Decision | None:
        """The decision if it is the same whatever first bytes over TCP show; None where the gate must wait for them."""
        number, settled = self._matcher(direction).first_whatever_is_shown(process, remote, at_s)
        return self._decision(number, direction) if settled else None

    def at_silence(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction = Direction.OUTBOUND
    ) -> tuple[Decision, bool]:
        """What holds for now, while the client waits; whether that is the last word, whatever its server greets with.

        It is no block unless every rule blocks that may still come first: to hear the greeting is to contact the
        origin. Nothing else is done by it.
        """
        possible = [
            self._decision(number, direction) for number in self._while_silent(process, remote, at_s, direction)
        ]
        open_ones = [decision for decision in possible if decision.action is not Action.BLOCK]
        last = possible[-1]
        return last if last in open_ones or not open_ones else open_ones[0], len(possible) == 1

    def at_hello(
        self,
        process: Process,
        remote: Endpoint,
        at_s: float,
        *,
        shown: Shown,
        proven: bool = True,
        direction: Direction = Direction.OUTBOUND,
    ) -> Decision:
        """The decision for a flow whose first bytes are known.

        Unless the name is `proven` (a DNS answer gave it this address), a bypass by name is what `unproven_name` says.
        """
        matcher = self._outbound_matcher if direction is Direction.OUTBOUND else self._inbound_matcher
        number = matcher.first(process, remote, at_s, shown)
        if not proven and number is not None and self.unproven_name is not UnprovenName.ALLOW:
            return self._unproven[number]
        return self._decision(number, direction)

    def with_key(self, decision: Decision, called: Endpoint, name: str | None) -> Decision:
        """`decision` about a connection that came in to `called`, once it is known to be TLS.

        Where it is to be decrypted, the decision names the service whose key does it. Without one for this port and
        name it is not decrypted: `on_failure` decides between bypass and block.
        """
        if decision.action is not Action.DECRYPT:
            return decision
        service = service_for(self.services, called.port, name or called.address)
        if service is not None:
            return replace(decision, service=service.name)
        whom = name or "a peer that names no host"
        reason = f"{decision.reason}; no [[inbound]] is for {whom} on port {called.port}"
        if self.on_failure is OnFailure.CLOSED:
            return replace(decision, action=Action.BLOCK, reason=f'{reason}, and on_failure = "closed"', inspect=())
        return replace(decision, action=Action.BYPASS, reason=f"{reason}, so it is relayed unread", inspect=())

    def decided_by(self, rule: Rule | None, direction: Direction = Direction.OUTBOUND) -> Decision:
        """What `rule` says, or the defaults (None) for this direction."""
        if rule is None:
            rule = self._defaults(direction)
        inspect = self.inspect if rule.inspect is None else rule.inspect
        return Decision(
            action=rule.action,
            rule=rule.name,
            reason=rule.reason or f'rule "{rule.name}" takes {subject(rule)}',
            owner=rule.owner,
            inspect=inspect if rule.action is Action.DECRYPT else (),
            on_finding=rule.on_finding,
            delivery=rule.delivery,
            upstream=rule.upstream or self.upstream,
            trust=rule.upstream_trust,
            revocation=rule.upstream_revocation,
            sct=rule.upstream_sct,
            min_tls=rule.min_tls or TlsVersion.TLS12,
            learning=self._learning(rule),
            identity=rule.client_certificate or "",
            page=rule.page and rule.action is Action.BLOCK and rule.direction is Direction.OUTBOUND,
            keep_evidence_s=self._kept_s(rule.keep_evidence) if rule.action is Action.DECRYPT else None,
        )

    def _kept_s(self, keeps: bool | None = None) -> int | None:
        return self.retention.evidence_s or 0 if (self.keep_evidence if keeps is None else keeps) else None

    def _learning(self, rule: Rule) -> Learning:
        """Of what comes in nothing is learned: its peers cannot be told apart."""
        if rule.action is not Action.DECRYPT or rule.direction is Direction.INBOUND:
            return NOTHING_LEARNED
        said = rule.learned_bypass, rule.on_certificate_request
        return learning(
            self.learned_bypass if said[0] is None else said[0],
            self.on_certificate_request if said[1] is None else said[1],
            hours=self.learned_bypass_hours,
            on_failure=self.on_failure,
            on_finding=rule.on_finding,
            needs_proof=self.unproven_name is not UnprovenName.ALLOW,
        )

    def _defaults(self, direction: Direction) -> Rule:
        if direction is Direction.INBOUND:
            reason = "no rule for incoming connections matched; [defaults] inbound decides"
            return Rule(name=DEFAULTS, action=self.inbound, reason=reason, direction=direction)
        return Rule(name=DEFAULTS, action=self.action, reason="no rule matched; [defaults] decide")

    def _decision(self, number: int | None, direction: Direction) -> Decision:
        if number is not None:
            return self._decisions[number]
        return self._otherwise if direction is Direction.OUTBOUND else self._otherwise_inbound

    def _while_silent(
        self, process: Process, remote: Endpoint, at_s: float, direction: Direction
    ) -> tuple[int | None, ...]:
        return self._matcher(direction).while_silent(process, remote, at_s)

    def _matcher(self, direction: Direction) -> Matcher:
        return self._outbound_matcher if direction is Direction.OUTBOUND else self._inbound_matcher

    @cached_property
    def _outbound_matcher(self) -> Matcher:
        return Matcher(self.applications, self.rules, Direction.OUTBOUND, self.zones, self.listed)

    @cached_property
    def _inbound_matcher(self) -> Matcher:
        return Matcher(self.applications, self.rules, Direction.INBOUND, self.zones, self.listed)

    @cached_property
    def listed(self) -> Listed:
        """Which of its lists hold a name. Long ones take a while at the first question, unless filled before it."""
        return Listed(self.lists)

    @cached_property
    def _decisions(self) -> tuple[Decision, ...]:
        """One for each rule."""
        return tuple(map(self.decided_by, self.rules))

    @cached_property
    def _otherwise(self) -> Decision:
        """The defaults'."""
        return self.decided_by(None)

    @cached_property
    def _otherwise_inbound(self) -> Decision:
        return self.decided_by(None, Direction.INBOUND)

    @cached_property
    def _unproven(self) -> tuple[Decision, ...]:
        """The same, of the rules only, where no answer confirms the name."""
        return tuple(map(self._doubted, self.rules, self._decisions))

    def _doubted(self, rule: Rule, decision: Decision) -> Decision:
        if not rule.asks_name or rule.action is not Action.BYPASS:
            return decision
        reason = f'{decision.reason}; no DNS answer confirms the name, and unproven_name = "{self.unproven_name}"'
        if self.unproven_name is UnprovenName.BLOCK:
            return replace(decision, action=Action.BLOCK, reason=reason)
        return replace(
            decision, action=Action.DECRYPT, reason=reason, inspect=self.inspect, keep_evidence_s=self._kept_s()
        )


def subject(rule: Rule) -> str:
    """Which flows a rule is about, in words."""
    words = everything = "connections" if rule.direction is Direction.OUTBOUND else "incoming connections"
    if rule.application:
        words += f" of {_some(rule.application)}"
    if rule.user:
        words += f" of user {_some(rule.user)}"
    to = [*rule.host, *rule.address]
    if to:
        words += f" {'to' if rule.direction is Direction.OUTBOUND else 'from'} {_some(to)}"
    if rule.category:
        words += f", category {_some(rule.category)}"
    if rule.port:
        words += f", port {_some([port_text(*ports) for ports in rule.port])}"
    ech = tuple("encrypted" if one else "in the clear" for one in rule.ech)
    shown = (("protocol", rule.protocol), ("ALPN", rule.alpn), ("JA4", rule.ja4), ("hello", ech))
    for key, values in (*shown, ("time", rule.time), ("until", (rule.expires,) if rule.expires else ())):
        if values:
            words += f", {key} {_some(values)}"
    return words if words != everything else f"every {everything.removesuffix('s')}"


def port_text(low: int, high: int) -> str:
    """A range as it is written in a policy."""
    return str(low) if low == high else f"{low}-{high}"


def _some(values: Sequence[str]) -> str:
    shown = ", ".join(values[:_SHOWN_VALUES])
    return shown if len(values) <= _SHOWN_VALUES else f"{shown} and {len(values) - _SHOWN_VALUES} more"


DEFAULT_POLICY = Policy()
"""Decrypt every selected flow; open where mitmsec itself fails; QUIC refused, so that programs use TCP."""
