"""Why does the policy decide as it does? Every rule with every condition, checked one by one.

This reads the rules directly and shares only the meaning of single conditions with the matcher, so that a test can
hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.core.host_lists import CATEGORY, Listed, is_list
from mitmsec.core.hours import LOCAL, Clocks, Week
from mitmsec.core.model import Action, Decision, Direction, Endpoint, Process, Quic, Value
from mitmsec.core.policy import Policy, Rule, port_text
from mitmsec.core.policytest import called
from mitmsec.core.quic_outcome import quic_outcome
from mitmsec.core.selector import (
    NO_PID,
    Program,
    host_patterns,
    networks,
    networks_accept,
    parse_address,
    ports_accept,
    text_matches,
    users,
)
from mitmsec.core.sniff import Protocol, Shown
from mitmsec.core.units import WINDOWS_SERVICE


class Checked(Value, frozen=True):
    """One condition of a rule against the flow."""

    key: str  # as in a rule
    holds: bool
    why: str


class Tried(Value, frozen=True):
    """One rule. `decided` is true for at most one: the first whose conditions all hold."""

    rule: str
    owner: str
    accepts: bool
    decided: bool
    conditions: tuple[Checked, ...]


class Explanation(Value, frozen=True):
    """What was decided, when, and what every rule had to say."""

    decision: Decision
    needs_name: bool  # the gate would wait for the first bytes, for a name or for what else they show
    tried: tuple[Tried, ...]


def explain(
    policy: Policy,
    process: Process,
    remote: Endpoint,
    at_s: float,
    shown: Shown,
    direction: Direction = Direction.OUTBOUND,
) -> Explanation:
    """The whole story of one flow. `remote.address` may be empty: then no condition on addresses holds.

    One that comes in is taken for TLS.
    """
    tried: list[Tried] = []
    clocks = Clocks(policy.zones)
    decider: Rule | None = None
    for rule in policy.rules:
        of_flow = _conditions(policy, rule, process, remote, shown)
        conditions = (*_direction(rule, direction), *of_flow, *_moment(rule, at_s, clocks))
        accepts = all(condition.holds for condition in conditions)
        decided = accepts and decider is None
        if decided:
            decider = rule
        tried.append(Tried(rule=rule.name, owner=rule.owner, accepts=accepts, decided=decided, conditions=conditions))
    decision = policy.decided_by(decider, direction)
    is_quic = shown.protocol is Protocol.QUIC
    needs_name = policy.at_connect(process, remote, at_s, direction) is None
    if is_quic:
        needs_name = policy.quic is not Quic.REFUSE
    if direction is Direction.INBOUND:
        needs_name = needs_name or decision.action is Action.DECRYPT
        decision = policy.with_key(decision, called(remote), shown.name)
    elif is_quic:
        decision = quic_outcome(policy, decision, shown)
    return Explanation(decision=decision, needs_name=needs_name, tried=tuple(tried))


def _direction(rule: Rule, direction: Direction) -> Iterator[Checked]:
    """Nothing is said of outgoing connections where nobody has asked about others."""
    if direction is Direction.INBOUND or rule.direction is Direction.INBOUND:
        holds = rule.direction is direction
        why = f"it is {direction}" if holds else f"the rule is for {rule.direction} connections"
        yield Checked(key="direction", holds=holds, why=why)


def _conditions(policy: Policy, rule: Rule, process: Process, remote: Endpoint, shown: Shown) -> Iterator[Checked]:
    if rule.application:
        yield _application(policy, rule, process)
    if rule.user:
        yield _user(rule, process)
    if rule.host:
        yield _host(rule, shown.name, policy.listed)
    if rule.category:
        yield _category(rule, shown.name, policy.listed)
    if rule.port:
        yield _port(rule, remote.port)
    if rule.address:
        yield _address(rule, remote.address)
    if rule.protocol:
        yield _one_of("protocol", rule.protocol, shown.protocol, "what it speaks is not known")
    if rule.alpn:
        yield _matching("alpn", rule.alpn, shown.alpn, "no protocol is offered by ALPN")
    if rule.ja4:
        ja4 = () if shown.ja4 is None else (shown.ja4,)
        yield _matching("ja4", rule.ja4, ja4, "no TLS fingerprint is known")
    if rule.ech:
        is_encrypted = None if shown.ech is None else _hello(shown.ech)
        yield _one_of("ech", tuple(map(_hello, rule.ech)), is_encrypted, "no TLS hello is known")


def _hello(ech: bool) -> str:
    return "an encrypted hello" if ech else "a hello in the clear"


def _moment(rule: Rule, at_s: float, clocks: Clocks) -> Iterator[Checked]:
    if rule.time:
        weeks = [Week.of(text) for text in rule.time]
        holds = any(week.minutes >> clocks.minute_of_week(week.zone, at_s) & 1 for week in weeks)
        zone = weeks[0].zone
        now = f"{clocks.at(zone, at_s):%a %H:%M}" + (f" {zone}" if zone != LOCAL else "")
        yield Checked(key="time", holds=holds, why=f"{now} is {'' if holds else 'not '}within {_listed(rule.time)}")
    if rule.expires_s is not None:
        holds = at_s < rule.expires_s
        yield Checked(key="expires", holds=holds, why=f"it {'expires' if holds else 'expired'} {rule.expires}")


def _one_of(key: str, wanted: tuple[str, ...], has: str | None, unknown: str) -> Checked:
    if has is None:
        return Checked(key=key, holds=False, why=unknown)
    if has in wanted:
        return Checked(key=key, holds=True, why=f"it is {has}")
    return Checked(key=key, holds=False, why=f"{has} is {'not' if len(wanted) == 1 else 'none of'} {_listed(wanted)}")


def _user(rule: Rule, process: Process) -> Checked:
    known = users(process)
    has = min(known.intersection(rule.user), default=process.user or min(known, default=None))
    return _one_of("user", rule.user, has, "who runs the program is not known")


def _matching(key: str, wanted: tuple[str, ...], has: tuple[str, ...], nothing: str) -> Checked:
    for text in has:
        if any(text_matches(glob, text) for glob in wanted):
            return Checked(key=key, holds=True, why=f"{text} is within {_listed(wanted)}")
    why = f"{_listed(has)} is not within {_listed(wanted)}" if has else nothing
    return Checked(key=key, holds=False, why=why)


def _application(policy: Policy, rule: Rule, process: Process) -> Checked:
    who = process.exe or "a program whose path is not known"
    for entry in rule.application:
        if Program.of(entry, policy.applications).accepts(process):
            return Checked(key="application", holds=True, why=f"{who} is one of {entry}")
    entries = tuple(entry + _lacks(policy, entry, process) for entry in rule.application)
    return Checked(key="application", holds=False, why=f"{who} is none of {_listed(entries)}")


def _lacks(policy: Policy, entry: str, process: Process) -> str:
    """Which criteria of an application the program does not fulfil, where that is more than its path."""
    answers = list(Program.of(entry, policy.applications).answers(process))
    if [key for key, _ in answers] == ["path"]:
        return ""
    wants = next(application for application in policy.applications if application.name == entry)
    has = {
        "path": process.exe,
        "process_name": process.name,
        "user": process.user,
        "sha256": process.sha256,
        "service": ", ".join(_services(process)) or None,
        "signer": process.signer,
        "container": process.container,
        "pid": None if process.pid == NO_PID else str(process.pid),
    }
    lacks = [_lack(key, has[key], tuple(map(str, getattr(wants, key)))) for key, answer in answers if not answer]
    return f" ({'; '.join(lacks)})"


def _services(process: Process) -> tuple[str, ...]:
    own = () if process.unit is None else (process.unit,)
    return (*own, *(WINDOWS_SERVICE + service for service in process.services))


def _lack(key: str, has: str | None, wants: tuple[str, ...]) -> str:
    if has is None:
        return f"{key} is not known"
    return f"{key} {has} is {'not' if len(wants) == 1 else 'none of'} {_listed(wants)}"


def _host(rule: Rule, name: str | None, lists: Listed) -> Checked:
    if name is None:
        return Checked(key="host", holds=False, why="the flow shows no name")
    for pattern in host_patterns(name):
        if pattern in rule.host:
            return Checked(key="host", holds=True, why=f"{name} is within {pattern}")
    for entry in rule.host:
        if is_list(entry) and (above := lists.within(name, entry)) is not None:
            return Checked(key="host", holds=True, why=f"{name} is within {above} (from the list {entry})")
    return Checked(key="host", holds=False, why=f"{name} is not within {_listed(rule.host)}")


def _category(rule: Rule, name: str | None, lists: Listed) -> Checked:
    if name is None:
        return Checked(key="category", holds=False, why="the flow shows no name")
    for category in rule.category:
        if (above := lists.within(name, CATEGORY + category)) is not None:
            return Checked(key="category", holds=True, why=f"{name} is within {above} ({category})")
    return Checked(key="category", holds=False, why=f"{name} is not in {_listed(rule.category)}")


def _port(rule: Rule, port: int) -> Checked:
    holds = ports_accept(rule.port, port)
    among = _listed(tuple(port_text(*ports) for ports in rule.port))
    match rule.port:
        case [(low, high)] if low == high:
            why = f"it is {port}" if holds else f"{port} is not {among}"
        case [_]:
            why = f"{port} is {'' if holds else 'not '}within {among}"
        case _:
            why = f"{port} is {'one' if holds else 'none'} of {among}"
    return Checked(key="port", holds=holds, why=why)


def _address(rule: Rule, address: str) -> Checked:
    holds = networks_accept(networks(rule.address), parse_address(address))
    among = _listed(rule.address)
    if not address:
        return Checked(key="address", holds=False, why=f"no address is given to compare with {among}")
    return Checked(key="address", holds=holds, why=f"{address} is {'' if holds else 'not '}within {among}")


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values) if len(values) <= 5 else f"{', '.join(values[:5])} and {len(values) - 5} more"
