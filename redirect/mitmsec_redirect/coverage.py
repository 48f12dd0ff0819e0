"""Which packets the data handle has to take: exactly the diverted flows', as long as a filter can say that.

Exchanging the filter of a handle takes tens of milliseconds, in which new connections wait; a filter holds about
sixty flows. So a remote that gets many connections becomes one term, which
also takes the packets of others who talk to it (they pass untouched), and beyond that one term takes all of TCP.

    few flows ──► one term a flow ──► remotes in demand become one term each ──► everything

Where nobody else's packets come to the handle, see `bystanders`, it takes everything from the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from mitmsec.core.model import Endpoint
from mitmsec_redirect import filters
from mitmsec_redirect.divert_signals import Flow, Terms
from mitmsec_redirect.filters import Limits, Own, Ports, Term

RULES_LIMIT = 60  # see mitmsec_redirect.filters: 64, of which it needs three itself
RULES_A_REMOTE = 2  # below and above the ports of our own connections to it
IN_DEMAND = 4  # connections to one remote within a window that make it a term of its own
WINDOW_S = 10.0
SLACK = 16  # so many needless rules are kept: an exchange of the filter costs more than they do
NOTHING = Terms()


class Coverage:
    """The diverted flows and the terms in force, which never change if they take everything from the beginning."""

    def __init__(self, in_force: Terms = NOTHING) -> None:
        self.in_force, self._is_fixed = in_force, in_force.everything
        self._asked: Terms | None = None
        self._flows: dict[Flow, None] = {}
        self._begun: Counter[Endpoint] = Counter()
        self._begun_before: Counter[Endpoint] = Counter()
        self._window_ends_s = 0.0

    def __len__(self) -> int:
        """How many flows are to be taken."""
        return len(self._flows)

    def add(self, flow: Flow, now_s: float) -> None:
        """This flow is to be taken."""
        self._turn(now_s)
        self._flows[flow] = None
        self._begun[flow.remote] += 1

    def remove(self, flow: Flow) -> None:
        """This one no longer; nothing happens if it was not."""
        self._flows.pop(flow, None)

    def covers(self, flow: Flow) -> bool:
        """The terms in force take the flow's packets, and so do those that are to follow them."""
        return self.in_force.cover(flow) and (self._asked is None or self._asked.cover(flow))

    # -- exchanging the filter -----------------------------------------------------------------------------------------
    @property
    def is_changing(self) -> bool:
        return self._asked is not None

    def ask(self, now_s: float) -> Terms:
        """The terms that there should be; until `settle` they count as being brought in force."""
        self._turn(now_s)
        self._asked = plan(self._flows, self._begun + self._begun_before)
        return self._asked

    def settle(self, *, in_force: bool) -> None:
        """What was asked for is in force, or cannot be."""
        if in_force and self._asked is not None:
            self.in_force = self._asked
        self._asked = None

    def is_wasteful(self, now_s: float) -> bool:
        """Much of what the data handle takes concerns no diverted flow any more."""
        self._turn(now_s)
        if self._is_fixed:
            return False
        needed = plan(self._flows, self._begun + self._begun_before)
        return _rules(self.in_force) > _rules(needed) + SLACK or _breadth(self.in_force) > _breadth(needed)

    def _turn(self, now_s: float) -> None:
        """Demand is what was begun in this window and the one before."""
        if now_s >= self._window_ends_s:
            stale = now_s >= self._window_ends_s + WINDOW_S
            self._begun_before = Counter() if stale else self._begun
            self._begun = Counter()
            self._window_ends_s = now_s + WINDOW_S


def plan(flows: Iterable[Flow], begun: Counter[Endpoint]) -> Terms:
    """The narrowest terms within the limit that cover `flows`; what room is left goes to the remotes in demand."""
    narrow: dict[Endpoint, list[Flow]] = {}
    for flow in flows:
        narrow.setdefault(flow.remote, []).append(flow)
    wide: set[Endpoint] = set()
    rules = sum(map(len, narrow.values()))
    crowded = sorted(narrow, key=lambda one: (-len(narrow[one]), one))
    wanted = sorted((one for one, count in begun.items() if count >= IN_DEMAND), key=lambda one: (-begun[one], one))
    for remote in (*crowded, *wanted):
        more = RULES_A_REMOTE - len(narrow.get(remote, ()))
        is_needed = rules > RULES_LIMIT and more < 0
        if remote not in wide and (is_needed or (begun[remote] >= IN_DEMAND and rules + more <= RULES_LIMIT)):
            wide.add(remote)
            narrow.pop(remote, None)
            rules += more
    if rules > RULES_LIMIT:
        return Terms(everything=True)
    return Terms(flows=frozenset(one for there in narrow.values() for one in there), remotes=frozenset(wide))


def filter_of(terms: Terms, own: Own, limits: Limits) -> str:
    """The data handle's filter: these terms, and all of the gate's answers; never own connections."""
    if terms.everything:
        return filters.everything_filter(own, limits).text
    flows = [Term(local_port=flow.local.port, remote=ip_address(flow.remote.address).packed) for flow in terms.flows]
    rules = max(filters.RULES_LEAST, limits.rules - RULES_A_REMOTE * len(terms.remotes))
    text = filters.data_filter(flows, own, msgspec.structs.replace(limits, rules=rules)).text
    remotes = " or ".join(_remote(remote) for remote in sorted(terms.remotes))
    return f"({text}) or (outbound and ({remotes}) and {_not_within(own.upstream)})" if remotes else text


def _remote(remote: Endpoint) -> str:
    field = "ipv6.DstAddr" if remote.is_v6 else "ip.DstAddr"
    return f"(tcp.DstPort == {remote.port} and {field} == {remote.address})"


def _not_within(ports: Ports) -> str:
    return f"(tcp.SrcPort < {ports.first} or tcp.SrcPort > {ports.last})"


def _rules(terms: Terms) -> int:
    return len(terms.flows) + RULES_A_REMOTE * len(terms.remotes)


def _breadth(terms: Terms) -> int:
    return 2 if terms.everything else 1 if terms.remotes else 0
