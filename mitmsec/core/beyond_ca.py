"""What a policy would decrypt and the CA may not speak for: such a connection is reset, so it is said beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mitmsec.core.covered_names import CoveredNames
from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import WITH_HELLO

_SHOWN = 3
_OUTCOME = "the CA may not speak for, so that connection is reset; `mitmsec ca show` has its limits"


def beyond_ca(policy: Policy, allows: Callable[[str], bool], excluded: Sequence[str]) -> list[str]:
    """A sentence for each outbound rule, and for the defaults, that decrypt names which the CA may not speak for,
    if only to show a page.

    `allows` says of a comparable name or address whether it may; `excluded` are names that it may not, and all below.
    """
    names = CoveredNames(policy.listed)
    told = [
        sentence
        for rule in policy.rules
        if (rule.action is Action.DECRYPT or rule.page) and rule.direction is Direction.OUTBOUND
        if not rule.protocol or not WITH_HELLO.isdisjoint(rule.protocol)
        if (sentence := _of_rule(rule, names, allows, excluded)) is not None
    ]
    if policy.action is Action.DECRYPT:
        told.append(f"what no rule takes is decrypted, which may be a name that {_OUTCOME}")
    return told


def _of_rule(rule: Rule, names: CoveredNames, allows: Callable[[str], bool], excluded: Sequence[str]) -> str | None:
    if not rule.asks_name:
        return f'rule "{rule.name}" decrypts whatever name a client asks for, which may be one that {_OUTCOME}'
    beyond = [
        part
        for pattern in names.spelt(rule.host or rule.categories)
        if (part := _beyond(pattern, allows, excluded)) is not None
    ]
    if not beyond:
        return None
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    return f'rule "{rule.name}" decrypts {", ".join(beyond[:_SHOWN])}{more}, which {_OUTCOME}'


def _beyond(pattern: str, allows: Callable[[str], bool], excluded: Sequence[str]) -> str | None:
    """What is not allowed of a pattern: a name alone, `*.` and a name for all below it, `.` and a name for both."""
    base = pattern.removeprefix("*").removeprefix(".")
    probe = f"any.{base}" if pattern.startswith("*") else base
    if not allows(probe):
        return pattern
    is_cut = base != pattern and any(name.removeprefix(".").endswith(f".{base}") for name in excluded)
    return f"{pattern} (some names below it)" if is_cut else None
