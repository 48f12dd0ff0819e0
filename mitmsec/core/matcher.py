"""Which rule comes first? The written rules, arranged once for quick answers.

    process ─► bits of the rules whose `application` and `user` hold, remembered by what identifies a program
    remote  ─► bits by port, by address
    at_s    ─► bits by time of the week and by expiry
    shown   ─► bits by host; by protocol, ALPN, JA4, ECH     all of them and-ed: the lowest bit is the first rule

Before the first bytes are there, the rules that ask about them may or may not hold: see `first_whatever_is_shown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import NamedTuple

from msgspec.structs import replace

from mitmsec.core.host_lists import Listed
from mitmsec.core.hours import Times, Zones
from mitmsec.core.model import Direction, Endpoint, Process
from mitmsec.core.names import name_and_parents
from mitmsec.core.rule_bits import (
    Addresses,
    Globs,
    Hosts,
    Listings,
    Ports,
    Rules,
    Words,
    is_short,
    lowest,
    make_room,
    numbers,
)
from mitmsec.core.rules import Application, Rule
from mitmsec.core.selector import Program, lineage, users
from mitmsec.core.sniff import GREETED, NOTHING_SHOWN, Protocol, Shown

REMEMBERED_PROGRAMS = 512  # then all are forgotten: a bound, not a cache to tune
_SILENT = (None, Protocol.TCP, *GREETED)  # what may come of a flow whose client waits for its server
_OWN_FACTS = attrgetter(  # that an application may ask for
    "exe", "name", "user", "uid", "sha256", "unit", "container", "services", "signer", "unread", "confidence"
)


class _Applying(NamedTuple):
    """The rules whose conditions on the program hold for one."""

    is_sure: bool  # of no rule's conditions on it is unknown whether they hold
    rules: Rules


class Matcher:
    """Answers for the rules of one direction; not thread-safe (one loop owns a policy)."""

    __slots__ = (
        "_addresses", "_alpn", "_asked", "_asks_category", "_asks_look", "_asks_pid", "_by_entry", "_categories",
        "_certain", "_ech", "_hosts", "_ja4", "_latest", "_lists", "_looks", "_mine", "_of_quic", "_ports", "_programs",
        "_protocols", "_remembered", "_silent", "_times", "_users",
    )  # fmt: skip

    def __init__(
        self,
        applications: Sequence[Application],
        rules: Sequence[Rule],
        direction: Direction = Direction.OUTBOUND,
        zones: Zones = (),
        lists: Listed | None = None,
    ) -> None:
        self._mine = sum(1 << number for number, rule in enumerate(rules) if rule.direction is direction)
        self._certain = sum(1 << number for number, rule in enumerate(rules) if not rule.asks_first_bytes)
        self._of_quic = sum(1 << number for number, rule in enumerate(rules) if rule.is_of_quic_only)
        self._by_entry = Words([rule.application for rule in rules])
        entries = {entry for rule in rules if rule.direction is direction for entry in rule.application}
        self._programs = {entry: Program.of(entry, applications) for entry in entries}
        self._asks_pid = any(program.asks_pid for program in self._programs.values())
        self._users = Words([rule.user for rule in rules])
        self._ports = Ports([rule.port for rule in rules])
        self._addresses = Addresses([rule.address for rule in rules])
        self._lists = lists or Listed(())
        self._hosts = Hosts([rule.host for rule in rules], self._lists)
        self._categories = Listings([rule.categories for rule in rules], self._lists)
        self._protocols = Words([rule.protocol for rule in rules])
        self._alpn = Globs([rule.alpn for rule in rules])
        self._ja4 = Globs([rule.ja4 for rule in rules])
        self._ech = Words([rule.ech for rule in rules])
        self._times = Times([rule.time for rule in rules], [rule.expires_s for rule in rules], zones)
        self._asks_category = any(rule.category for rule in rules)
        self._asks_look = any(rule.protocol or rule.alpn or rule.ja4 or rule.ech for rule in rules)
        self._looks: dict[object, Rules] = {}
        self._silent = reduce(or_, [self._shown(replace(NOTHING_SHOWN, protocol=each)) for each in _SILENT])
        self._remembered: dict[object, _Applying] = {}
        self._latest: tuple[Process, _Applying] | None = None
        self._asked: tuple[Process, Endpoint, float, Rules] | None = None

    def first(self, process: Process, remote: Endpoint, at_s: float, shown: Shown) -> int | None:
        """The number of the first rule that accepts the flow, None where no rule does."""
        return lowest(self._possible(process, remote, at_s) & self._shown(shown))

    def first_whatever_is_shown(self, process: Process, remote: Endpoint, at_s: float) -> tuple[int | None, bool]:
        """The first rule for a flow over TCP that shows nothing, and whether any first bytes give the same.

        They do exactly if no rule that asks about them stands before that rule and accepts process, address and port:
        such a rule takes the flow for some first bytes, and another rule is another answer even with the same action
        (the rule is recorded, and it may inspect something else).
        """
        possible = self._possible(process, remote, at_s) & ~self._of_quic
        found = lowest(possible & self._certain)
        return found, lowest(possible) == found

    def while_silent(self, process: Process, remote: Endpoint, at_s: float) -> tuple[int | None, ...]:
        """The rules that may come first while the client says nothing: what its server greets with can decide.

        In their order; the last is the one (None: no rule) that comes first whatever that is.
        """
        possible = self._possible(process, remote, at_s)
        certain = possible & self._certain
        before = (certain & -certain) - 1 if certain else -1  # all bits below the lowest
        return (*numbers(possible & self._silent & before), lowest(certain))

    def can_judge(self, process: Process) -> bool:
        """Whether everything about `process` is known that a rule asks: else another rule might have come first."""
        return self._applying(process).is_sure

    def _possible(self, process: Process, remote: Endpoint, at_s: float) -> Rules:
        """A flow's questions come one after the other, about the same objects."""
        latest = self._asked
        if latest is not None and latest[0] is process and latest[1] is remote and latest[2] == at_s:
            return latest[3]
        possible = (
            self._applying(process).rules
            & self._times.rules(at_s)
            & self._ports.rules(remote.port)
            & self._addresses.rules(remote.address)
        )
        self._asked = process, remote, at_s, possible
        return possible

    def _shown(self, shown: Shown) -> Rules:
        names = () if shown.name is None else name_and_parents(shown.name)
        holding = self._lists.holding_one_of(names) if names else 0
        found = self._hosts.rules(names, holding)
        if self._asks_category:
            found &= self._categories.rules(holding)
        return found & self._beside_name(shown) if self._asks_look else found

    def _beside_name(self, shown: Shown) -> Rules:
        """A client shows much the same to everybody."""
        look = shown.protocol, shown.alpn, shown.ja4, shown.ech
        known = self._looks.get(look)
        if known is None:
            ja4 = () if shown.ja4 is None else (shown.ja4,)
            said = self._protocols.rules(shown.protocol) & self._alpn.rules(shown.alpn)
            known = said & self._ja4.rules(ja4) & self._ech.rules(shown.ech)
            if is_short(shown.alpn):
                make_room(self._looks)
                self._looks[look] = known
        return known

    def _applying(self, process: Process) -> _Applying:
        if self._latest is None or self._latest[0] is not process:
            self._latest = process, self._remembered_of(process)
        return self._latest[1]

    def _remembered_of(self, process: Process) -> _Applying:
        parent = (process.parent.exe, process.parent.claimed_exe is None) if process.parent else None
        pids = lineage(process) if self._asks_pid else ()
        key = (_OWN_FACTS(process), process.claimed_exe is None, pids, parent)
        known = self._remembered.get(key)
        if known is None:
            if len(self._remembered) >= REMEMBERED_PROGRAMS:
                self._remembered.clear()
            known = self._remembered[key] = self._apply(process)
        return known

    def _apply(self, process: Process) -> _Applying:
        accepted = [entry for entry, program in self._programs.items() if program.accepts(process)]
        applying = self._mine & reduce(or_, map(self._by_entry.rules, accepted), self._by_entry.rules(None))
        asks_user = applying & ~self._users.rules(None)
        known = users(process)
        is_sure = all(program.can_judge(process) for program in self._programs.values())
        return _Applying(
            is_sure=is_sure and (bool(known) or not asks_user),
            rules=applying & reduce(or_, map(self._users.rules, known), self._users.rules(None)),
        )
