"""What is valid, and may yet not be meant: rules that earlier ones together leave nothing to, and rules that overlap.

    together   each earlier rule takes a part, by one condition: ports, hosts, …; between them they take it all
    overlap    two rules of the same conditions with different actions, neither within the other: the earlier decides

An exception before a wider rule is how policies are written, and so are a rule about hosts and one about ports, one
after the other: they are not told. Both are looked for where that is cheap:
by one condition at a time, in lists of LIST_LIMIT entries at most, among RULES_LIMIT rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from msgspec.structs import replace

from mitmsec.core.contradiction import covers, entry_covers, protocols
from mitmsec.core.covered_names import CoveredNames
from mitmsec.core.names import parents
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.rules import CONDITIONS
from mitmsec.core.selector import merged, networks, networks_cover, ports_cover, text_covers

RULES_LIMIT = 300  # about a second: each is compared with each
LIST_LIMIT = 10_000
SHOWN_LIMIT = 20  # sentences of a kind
ALL_PORTS = ((1, 0xFFFF),)
EVERYWHERE = ("0.0.0.0/0", "::/0")
DIVIDED = ("port", "host", "address", "application", "user", "protocol")  # conditions that rules can share among them


def overlaps(policy: Policy) -> list[str]:
    """A sentence for each rule that earlier ones leave nothing to, and for each pair that overlaps."""
    names = CoveredNames(policy.listed)
    if len(policy.rules) > RULES_LIMIT:
        return [f"of more than {RULES_LIMIT} rules it is not looked whether some overlap"]
    gone = {}
    for number, rule in enumerate(policy.rules):
        if takers := together(policy.rules[:number], rule, names):
            gone[number] = f'rule "{rule.name}" can never match: {_listed(takers)} together take all that it describes'
    pairs = (
        f'rules "{first.name}" and "{second.name}" overlap: what both describe is {first.action.value}, by the earlier'
        for (_, first), (later, second) in combinations(enumerate(policy.rules), 2)
        if later not in gone and first.action is not second.action and _overlap(first, second, names)
    )
    return [*_few(gone.values()), *_few(pairs)]


def _few(sentences: Iterable[str]) -> Iterator[str]:
    count = 0
    for count, sentence in enumerate(sentences, 1):
        if count <= SHOWN_LIMIT:
            yield sentence
    if count > SHOWN_LIMIT:
        yield f"and {count - SHOWN_LIMIT} more of this kind"


def _listed(rules: Sequence[Rule]) -> str:
    named = [f'"{rule.name}"' for rule in rules]
    return f"the earlier rules {', '.join(named[:-1])} and {named[-1]}"


# -- several that leave nothing ----------------------------------------------------------------------------------------
def together(earlier: Sequence[Rule], rule: Rule, names: CoveredNames) -> tuple[Rule, ...]:
    """Of the earlier rules those that between them take all that `rule` does; none where no two or more do so."""
    for key in DIVIDED:
        parts = [one for one in earlier if getattr(one, key) and covers(replace(one, **{key: ()}), rule, names)]
        if len(parts) > 1 and _cover(key, parts, rule, names):
            return _needed(key, parts, rule, names)
    return ()


def _needed(key: str, parts: list[Rule], rule: Rule, names: CoveredNames) -> tuple[Rule, ...]:
    """Without any one of them something would be left."""
    needed = list(parts)
    for one in reversed(parts):
        rest = [other for other in needed if other is not one]
        if rest and _cover(key, rest, rule, names):
            needed = rest
    return tuple(needed)


def _cover(key: str, parts: Iterable[Rule], rule: Rule, names: CoveredNames) -> bool:
    wide = [value for one in parts for value in getattr(one, key)]
    narrow = getattr(rule, key)
    if len(wide) > LIST_LIMIT or len(narrow) > LIST_LIMIT:
        return False
    match key:
        case "port":
            return ports_cover(merged(wide), merged(narrow or ALL_PORTS))
        case "address":
            return networks_cover(networks(wide), networks(narrow or EVERYWHERE))
        case "protocol":
            return protocols(rule) <= set(wide)
        case "host":
            is_short = names.count(wide) <= LIST_LIMIT and names.count(narrow) <= LIST_LIMIT
            return bool(narrow) and is_short and names.all_within(narrow, wide)
        case "application":
            return bool(narrow) and all(any(entry_covers(other, entry) for other in wide) for entry in narrow)
        case _:
            return bool(narrow) and set(narrow) <= set(wide)


# -- two that overlap --------------------------------------------------------------------------------------------------
def _overlap(first: Rule, second: Rule, names: CoveredNames) -> bool:
    return (
        first.direction is second.direction
        and _asked(first) == _asked(second)
        and _ports_meet(first, second)
        and _words_meet(first.user, second.user)
        and not protocols(first).isdisjoint(protocols(second))
        and first.time == second.time  # of others it is not looked whether they meet
        and _texts_meet(first.alpn, second.alpn)
        and _texts_meet(first.ja4, second.ja4)
        and _words_meet(first.ech, second.ech)
        and _entries_meet(first, second)
        and _addresses_meet(first, second)
        and _words_meet(first.category, second.category)
        and _words_meet(first.time, second.time)
        and _hosts_meet(first, second, names)
        and not covers(second, first, names)  # then it is an exception, before what it is an exception of
        and not covers(first, second, names)
    )


def _asked(rule: Rule) -> tuple[bool, ...]:
    """Which conditions it has."""
    return tuple(bool(getattr(rule, key)) for key in CONDITIONS)


def _ports_meet(first: Rule, second: Rule) -> bool:
    pairs = ((one, other) for one in first.port or ALL_PORTS for other in second.port or ALL_PORTS)
    return any(one[0] <= other[1] and other[0] <= one[1] for one, other in pairs)


def _words_meet(first: Sequence[str | bool], second: Sequence[str | bool]) -> bool:
    return not first or not second or not set(first).isdisjoint(second)


def _texts_meet(first: Sequence[str], second: Sequence[str]) -> bool:
    pairs = ((one, other) for one in first for other in second)
    return not first or not second or any(text_covers(one, other) or text_covers(other, one) for one, other in pairs)


def _entries_meet(first: Rule, second: Rule) -> bool:
    """Of two globs of which neither is within the other nothing is said."""
    if not first.application or not second.application:
        return True
    pairs = ((one, other) for one in first.application for other in second.application)
    return any(entry_covers(one, other) or entry_covers(other, one) for one, other in pairs)


def _addresses_meet(first: Rule, second: Rule) -> bool:
    if not first.address or not second.address:
        return True
    theirs = networks(second.address)
    return any(networks_cover((one,), (other,)) or networks_cover((other,), (one,))
               for one in networks(first.address) for other in theirs)  # fmt: skip


def _hosts_meet(first: Rule, second: Rule, names: CoveredNames) -> bool:
    if not first.host or not second.host:
        return True
    if names.count(first.host) + names.count(second.host) > LIST_LIMIT:
        return False
    mine, theirs = set(names.spelt(first.host)), set(names.spelt(second.host))
    return _reaches(mine, theirs) or _reaches(theirs, mine)


def _reaches(patterns: Iterable[str], others: set[str]) -> bool:
    """Whether some name of one of `patterns` is one of `others`, or stands above all that it accepts."""
    return any(not others.isdisjoint(_above(pattern)) for pattern in patterns)


def _above(pattern: str) -> set[str]:
    """All patterns that accept what this one accepts, or some of it and more."""
    name = pattern.removeprefix("*").removeprefix(".")
    above = {pattern, f".{name}", *(f"{mark}{parent}" for parent in parents(name) for mark in ("*.", "."))}
    return above | {f"*.{name}", name} if pattern.startswith(".") else above
