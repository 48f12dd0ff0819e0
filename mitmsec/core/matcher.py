"""Which rule comes first? The written rules, arranged once for quick answers.

    rules ──► by host pattern: {"*.bank.example": (3, 17), …}     a name asks a handful of patterns, not every rule
          └─► without a host condition: (0, 5, …)
    process ─► which rules' `application` holds, remembered by what identifies a program (by pids only if a rule asks)

A rule with a host condition never accepts a flow without a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import merge
from typing import NamedTuple

from mitmsec.core.model import Direction, Endpoint, Process
from mitmsec.core.rules import Application, Rule
from mitmsec.core.selector import (
    Address,
    Network,
    Program,
    Ranges,
    host_patterns,
    lineage,
    merged,
    networks,
    networks_accept,
    parse_address,
    ports_accept,
)

REMEMBERED_PROGRAMS = 512  # then all are forgotten: a bound, not a cache to tune


class Destination(NamedTuple):
    """A rule's conditions on the remote endpoint."""

    ports: Ranges
    within: tuple[Network, ...]

    @classmethod
    def of(cls, rule: Rule) -> Destination:
        return cls(merged(rule.port), networks(rule.address))

    def accepts(self, port: int, address: Address | None) -> bool:
        return (not self.ports or ports_accept(self.ports, port)) and (
            not self.within or networks_accept(self.within, address)
        )


class _Applying(NamedTuple):
    """The rules, by number and in order, whose `application` holds for one program."""

    is_sure: bool  # of no rule's application it is unknown whether it holds

    named: tuple[int, ...]  # those with a host condition
    unnamed: tuple[int, ...]
    all: frozenset[int]


class Matcher:
    """Answers for the rules of one direction; not thread-safe (one loop owns a policy)."""

    __slots__ = ("_asks_pid", "_by_pattern", "_destinations", "_numbers", "_programs", "_remembered", "_rules")

    def __init__(
        self, applications: Sequence[Application], rules: Sequence[Rule], direction: Direction = Direction.OUTBOUND
    ) -> None:
        self._rules = rules
        self._numbers = [number for number, rule in enumerate(rules) if rule.direction is direction]
        self._destinations = [Destination.of(rule) for rule in rules]
        entries = {entry for number in self._numbers for entry in rules[number].application}
        self._programs = {entry: Program.of(entry, applications) for entry in entries}
        self._asks_pid = any(program.asks_pid for program in self._programs.values())
        self._by_pattern: dict[str, list[int]] = {}
        for number, rule in enumerate(rules):
            for pattern in rule.host:
                self._by_pattern.setdefault(pattern, []).append(number)
        self._remembered: dict[object, _Applying] = {}

    def first(self, process: Process, remote: Endpoint, name: str | None) -> int | None:
        """The number of the first rule that accepts the flow, None where no rule does."""
        applying = self._applying(process)
        if name is None:
            return self._reaches(applying.unnamed, remote)
        hits = {number for pattern in host_patterns(name) for number in self._by_pattern.get(pattern, ())}
        return self._reaches(merge(sorted(hits & applying.all), applying.unnamed), remote)

    def first_whatever_name(self, process: Process, remote: Endpoint) -> tuple[int | None, bool]:
        """The first rule for a flow without a name, and whether any name gives the same.

        It does exactly if no rule with a host condition stands before that rule and accepts process, address and
        port: such a rule takes the flow for some name, and another rule is another answer even with the same action
        (the rule is recorded, and it may inspect something else).
        """
        applying = self._applying(process)
        found = self._reaches(applying.unnamed, remote)
        before = self._reaches(applying.named, remote)
        return found, before is None or (found is not None and found < before)

    def can_judge(self, process: Process) -> bool:
        """Whether everything about `process` is known that a rule asks: else another rule might have come first."""
        return self._applying(process).is_sure

    def _reaches(self, numbers: Iterable[int], remote: Endpoint) -> int | None:
        address = parse_address(remote.address)
        return next((n for n in numbers if self._destinations[n].accepts(remote.port, address)), None)

    def _applying(self, process: Process) -> _Applying:
        parent = (process.parent.exe, process.parent.claimed_exe is None) if process.parent else None
        exe = (process.exe, process.claimed_exe is None)
        cgroup = (process.unit, process.container)
        pids = lineage(process) if self._asks_pid else ()
        windows = (process.services, process.signer, process.unread)
        key = (exe, process.name, process.user, process.sha256, cgroup, windows, pids, parent, process.confidence)
        known = self._remembered.get(key)
        if known is None:
            if len(self._remembered) >= REMEMBERED_PROGRAMS:
                self._remembered.clear()
            known = self._remembered[key] = self._apply(process)
        return known

    def _apply(self, process: Process) -> _Applying:
        accepted = {entry for entry, program in self._programs.items() if program.accepts(process)}
        numbers = [
            number
            for number in self._numbers
            if not (wanted := self._rules[number].application) or not accepted.isdisjoint(wanted)
        ]
        return _Applying(
            is_sure=all(program.can_judge(process) for program in self._programs.values()),
            named=tuple(number for number in numbers if self._rules[number].host),
            unnamed=tuple(number for number in numbers if not self._rules[number].host),
            all=frozenset(numbers),
        )
