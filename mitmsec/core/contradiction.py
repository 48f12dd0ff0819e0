"""What is well written and yet cannot be: rules that never match, pairs of settings that exclude each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from mitmsec.core import hours
from mitmsec.core.covered_names import CoveredNames
from mitmsec.core.model import Action, Delivery, Direction, OnFailure, OnFinding, Quic, Value
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.selector import (
    is_path,
    merged,
    networks,
    networks_cover,
    path_covers,
    ports_cover,
    text_covers,
)
from mitmsec.core.sniff import WITH_HELLO, WITH_NAME, Protocol

OUTBOUND = (
    "learned_bypass", "on_certificate_request", "client_certificate",
    "upstream", "upstream_trust", "upstream_revocation", "upstream_sct", "min_tls",
)  # fmt: skip


class Contradiction(Value, frozen=True):
    """`rule` is the rule's number, None for the defaults; `key` the key to blame, empty for the rule as a whole."""

    rule: int | None
    message: str
    key: str = ""


def impossible_defaults(policy: Policy) -> Iterator[Contradiction]:
    """Settings of the defaults that no rule and no default could ever use."""
    inherits = Action.DECRYPT in (policy.action, policy.inbound) or any(
        rule.action is Action.DECRYPT and rule.inspect is None for rule in policy.rules
    )
    if policy.inspect and not inherits:
        yield Contradiction(rule=None, key="inspect", message="nothing is decrypted that this would inspect")
    decisions = (
        policy.decided_by(None),
        policy.decided_by(None, Direction.INBOUND),
        *map(policy.decided_by, policy.rules),
    )
    if policy.keep_evidence and not any(one.keep_evidence_s is not None and one.inspect for one in decisions):
        yield Contradiction(rule=None, key="keep_evidence", message="nothing is inspected of which this could be kept")


def impossible_pairs(policy: Policy) -> Iterator[Contradiction]:
    """Settings of one rule that exclude each other."""
    for number, rule in enumerate(policy.rules):
        if (why := _impossible_protocol(rule, policy.quic)) is not None:
            yield Contradiction(rule=number, key="protocol", message=why)
        if rule.action is not Action.DECRYPT:
            if rule.inspect:
                why = f'action "{rule.action.value}" shows no content to inspect; it needs "decrypt"'
                yield Contradiction(rule=number, key="inspect", message=why)
            if rule.on_finding is not OnFinding.ALERT:
                why = f'"{rule.on_finding.value}" needs action "decrypt", but this rule has "{rule.action.value}"'
                yield Contradiction(rule=number, key="on_finding", message=why)
        elif rule.on_finding is not OnFinding.ALERT and not policy.decided_by(rule).inspect:
            why = f'"{rule.on_finding.value}" without any inspector: nothing can be found'
            yield Contradiction(rule=number, key="on_finding", message=why)
        elif rule.on_finding is OnFinding.QUARANTINE and not policy.recipients:
            why = '"quarantine" needs people who can open it: add [quarantine] with recipients, two or more'
            yield Contradiction(rule=number, key="on_finding", message=why)
        if rule.keep_evidence and (rule.action is not Action.DECRYPT or not policy.decided_by(rule).inspect):
            why = f'action "{rule.action.value}" shows no content; it needs "decrypt"'
            if rule.action is Action.DECRYPT:
                why = "without any inspector nothing can be found that could be kept"
            yield Contradiction(rule=number, key="keep_evidence", message=why)
        if rule.delivery is not Delivery.HOLD and not policy.decided_by(rule).inspect:
            why = f'"{rule.delivery.value}" without any inspector: nothing waits'
            yield Contradiction(rule=number, key="delivery", message=why)
        if rule.page and (rule.action is not Action.BLOCK or rule.direction is Direction.INBOUND):
            why = 'is for rules with action "block", about connections that go out'
            yield Contradiction(rule=number, key="page", message=why)
        if rule.action is not Action.DECRYPT or rule.direction is Direction.INBOUND:
            for key in OUTBOUND:
                if getattr(rule, key) is not None:
                    why = 'is for rules with action "decrypt", about connections that go out'
                    yield Contradiction(rule=number, key=key, message=why)


def _impossible_protocol(rule: Rule, quic: Quic) -> str | None:
    """Why nothing that the rule's protocols can be shows what its other conditions ask, or can be what it says."""
    if Protocol.QUIC in rule.protocol and rule.direction is Direction.INBOUND:
        return "of connections that come in, QUIC is none"
    if rule.is_of_quic_only and rule.action is Action.CAPTURE:
        return 'QUIC is never captured: "bypass", "block" or "decrypt" is wanted'
    if rule.is_of_quic_only and rule.action is Action.DECRYPT and quic is not Quic.DECRYPT:
        return f'[defaults] has quic = "{quic}", so it is not read; "decrypt" wants quic = "decrypt"'
    if rule.protocol and (rule.alpn or rule.ja4 or rule.ech) and WITH_HELLO.isdisjoint(rule.protocol):
        return 'alpn, ja4 and ech are TLS\'s: "tls" is wanted among these, or what goes on under TLS'
    if rule.protocol and rule.asks_name and WITH_NAME.isdisjoint(rule.protocol):
        key = "host" if rule.host else "category"
        return f"none of these shows a name, which {key} asks for; that do {', '.join(sorted(WITH_NAME))}"
    return None


def without_key(policy: Policy) -> Iterator[Contradiction]:
    """What is to be decrypted of connections that come in, and for which no service's key can be had."""
    if policy.inbound is Action.DECRYPT and not policy.services:
        yield Contradiction(rule=None, key="inbound", message=f"{_NO_KEY}; add one, with certificate and key")
    for number, rule in enumerate(policy.rules):
        if rule.direction is not Direction.INBOUND or rule.action is not Action.DECRYPT:
            continue
        if not policy.services:
            yield Contradiction(rule=number, key="action", message=f"{_NO_KEY}; add one, with certificate and key")
        elif not any(service.may_be_for(merged(rule.port)) for service in policy.services):
            yield Contradiction(rule=number, key="port", message="no [[inbound]] is for any of these ports")


def escapes(policy: Policy) -> list[str]:
    """A sentence for each rule whose findings do more than alert, and which a peer can have passed by, as it likes."""
    if policy.on_failure is OnFailure.CLOSED:
        return []
    return [
        f'rule "{rule.name}" stops what is found, but a peer that shows no name, or one of no [[inbound]], is relayed '
        'unread: on_failure = "closed" would reset it'
        for rule in policy.rules
        if rule.direction is Direction.INBOUND
        and rule.action is Action.DECRYPT
        and rule.on_finding is not OnFinding.ALERT
    ]


_NO_KEY = "there is no [[inbound]] whose key could decrypt what comes in"


def never_matching(policy: Policy, sound: Collection[int]) -> Iterator[Contradiction]:
    """Rules whose every flow an earlier single rule takes. (For several together see mitmsec.core.overlap.)

    Only rules whose number is in `sound` are compared: one that was not read fully seems to take more than it does.
    """
    names = CoveredNames(policy.listed)
    names.expect(policy.rules)
    seen = _Earlier(names)
    for number, rule in enumerate(policy.rules):
        if number not in sound:
            continue
        earlier = map(policy.rules.__getitem__, seen.candidates(rule))
        shadow = next((other for other in earlier if covers(other, rule, names)), None)
        if shadow is not None:
            why = f'can never match: the earlier rule "{shadow.name}" takes every connection that this one describes'
            yield Contradiction(rule=number, message=why)
        seen.add(number, rule)


class _Earlier:
    """Which earlier rules could cover one: those without a condition on names, and those that know its first one."""

    def __init__(self, names: CoveredNames) -> None:
        self._names = names
        self._unnamed: list[int] = []
        self._by_pattern: dict[str, list[int]] = {}

    def add(self, number: int, rule: Rule) -> None:
        if not rule.asks_name:
            self._unnamed.append(number)
        for pattern in (*rule.host, *rule.categories):
            self._by_pattern.setdefault(pattern, []).append(number)

    def candidates(self, rule: Rule) -> list[int]:
        named = {number for clue in self._names.clues(rule) for number in self._by_pattern.get(clue, ())}
        return sorted(named.union(self._unnamed))


def covers(wide: Rule, narrow: Rule, names: CoveredNames) -> bool:
    """Whether `wide` takes every connection that `narrow` describes, as far as that can be told of each condition."""
    return (
        wide.direction is narrow.direction
        and _covers_what_is_shown(wide, narrow)
        and _covers_words(wide.user, narrow.user)
        and _outlasts(wide, narrow)
        and _covers_ports(wide, narrow)
        and _covers_addresses(wide, narrow)
        and _covers_applications(wide, narrow)
        and names.covers(wide, narrow)
    )


def _covers_applications(wide: Rule, narrow: Rule) -> bool:
    if not wide.application or not narrow.application:
        return not wide.application
    return all(any(entry_covers(other, entry) for other in wide.application) for entry in narrow.application)


def _covers_words(wide: Collection[str | bool], narrow: Collection[str | bool]) -> bool:
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _outlasts(wide: Rule, narrow: Rule) -> bool:
    """Whether it holds at all times at which the other does."""
    lasts = wide.expires_s is None or (narrow.expires_s is not None and narrow.expires_s <= wide.expires_s)
    return lasts and hours.covers(wide.time, narrow.time)


def expired(rules: Iterable[Rule], now_s: float) -> list[str]:
    """A sentence for each rule that has expired by now."""
    return [
        f'rule "{rule.name}"{f" of {rule.owner}" if rule.owner else ""} expired {rule.expires}: it matches nothing more'
        for rule in rules
        if rule.expires_s is not None and rule.expires_s <= now_s
    ]


def _covers_what_is_shown(wide: Rule, narrow: Rule) -> bool:
    return (
        (not wide.protocol or protocols(narrow) <= set(wide.protocol))
        and _covers_globs(wide.alpn, narrow.alpn)
        and _covers_globs(wide.ja4, narrow.ja4)
        and _covers_words(wide.ech, narrow.ech)
    )


def protocols(rule: Rule) -> set[Protocol]:
    """All that a connection can be which the rule takes."""
    possible = set(rule.protocol or Protocol)
    if rule.asks_name:
        possible &= WITH_NAME
    return possible & WITH_HELLO if rule.alpn or rule.ja4 or rule.ech else possible


def _covers_globs(wide: Collection[str], narrow: Collection[str]) -> bool:
    if not wide or not narrow:
        return not wide
    return all(any(text_covers(other, glob) for other in wide) for glob in narrow)


def entry_covers(wide: str, narrow: str) -> bool:
    """Of two entries under `application`."""
    return wide == narrow or (is_path(wide) and is_path(narrow) and path_covers(wide, narrow))


def _covers_ports(wide: Rule, narrow: Rule) -> bool:
    if not wide.port or not narrow.port:
        return not wide.port
    return ports_cover(merged(wide.port), merged(narrow.port))


def _covers_addresses(wide: Rule, narrow: Rule) -> bool:
    if not wide.address or not narrow.address:
        return not wide.address
    return networks_cover(networks(wide.address), networks(narrow.address))
