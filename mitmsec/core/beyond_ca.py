"""What a policy would decrypt and the CA may not speak for: such a connection is reset, so it is said beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule

_SHOWN = 3
_OUTCOME = "the CA may not speak for, so that connection is reset; `mitmsec ca show` has its limits"


def beyond_ca(policy: Policy, allows: Callable[[str], bool], excluded: Sequence[str]) -> list[str]:
    """A sentence for each outbound rule, and for the defaults, that decrypt names which the CA may not speak for.

    `allows` says of a comparable name or address whether it may; `excluded` are names that it may not, and all below.
    """
    told = [
        sentence
        for rule in policy.rules
        if rule.action is Action.DECRYPT and rule.direction is Direction.OUTBOUND
        if (sentence := _of_rule(rule, allows, excluded)) is not None
    ]
    if policy.action is Action.DECRYPT:
        told.append(f"what no rule takes is decrypted, which may be a name that {_OUTCOME}")
    return told


def _of_rule(rule: Rule, allows: Callable[[str], bool], excluded: Sequence[str]) -> str | None:
    if not rule.host:
        return f'rule "{rule.name}" decrypts whatever name a client asks for, which may be one that {_OUTCOME}'
    beyond = [pattern for pattern in rule.host if not _is_allowed(pattern, allows, excluded)]
    if not beyond:
        return None
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    return f'rule "{rule.name}" decrypts {", ".join(beyond[:_SHOWN])}{more}, which {_OUTCOME}'


def _is_allowed(pattern: str, allows: Callable[[str], bool], excluded: Sequence[str]) -> bool:
    """Whether all that `pattern` stands for is: a name that stands for no other, and one for all below it."""
    base = pattern.removeprefix("*").removeprefix(".")
    if base == pattern:
        return allows(pattern)
    probe = base if pattern.startswith(".") else f"any.{base}"
    return allows(probe) and not any(name.removeprefix(".").endswith(f".{base}") for name in excluded)
