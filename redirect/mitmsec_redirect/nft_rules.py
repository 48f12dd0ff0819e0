"""The rules of one session, as text for `nft -f -` (nft(8)). Each text is one transaction: all of it holds or nothing.

    packet of the session's cgroup, leaving            (`socket cgroupv2`, the cgroup in which its socket was made)
      │
      ├─ judge (filter, −150) ── first segment of a TCP connection ──► attempts
      │     │                      to the gate's own listener ───────────────────► RST         own_listener
      │     │                      closed: link-local, gate stalled, no listener ► RST         link_local, …
      │     └──────────────────── UDP/443, quic = refuse ────────────────────────► EPERM       quic_refused
      │
      ├─ divert (nat, −100) ───── first segment ─────────────────────► diverting
      │                            open: link-local, gate stalled, no listener ──► undiverted  link_local, …
      │                            redirect to 127.0.0.1:port_v4, [::1]:port_v6                diverted
      │
      └─ guard (filter, 50), closed only: still not on its way to the gate ──────► RST         no_memory

`alive` is a set whose one element per protocol lasts a second: the supervisor passes each heartbeat of the gate on into
it, so when either of them dies or hangs it is empty, and nothing has to run for the rules to notice. With `open` that
makes them let everything pass, QUIC included; with `closed` they refuse.

Where a connection is not diverted a counter counts, and the packet's head is logged for the supervisor
(mitmsec_redirect.nflog): the prefix says why, and what became of it. UDP passes, and is counted: `nft_udp_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mitmsec.core.model import OnFailure, Quic, Value
from mitmsec_redirect import nft_udp_rules
from mitmsec_redirect.nft_udp_rules import UdpGroups
from mitmsec_redirect.records import Reason

FAMILY = "inet"
ALIVE = "alive"
ALIVE_S = 1
DIVERTED = "diverted"
REASONS = (
    Reason.GATE_STALLED,
    Reason.LINK_LOCAL,
    Reason.NO_IPV6_LISTENER,
    Reason.NO_MEMORY,
    Reason.OWN_LISTENER,
    Reason.QUIC_REFUSED,
)
LEVELS = range(1, 65)  # at which a cgroup is looked for; containers nested in containers come to a dozen
SNAPLEN_BYTES = 128  # IP and TCP header; extension headers that leave no room for the ports are not worth more
DENIED, PASSED = "denied", "passed"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_UNQUOTABLE = re.compile(r'["\x00-\x1f\x7f]')
_FIRST_SEGMENT = "tcp flags & (fin | syn | rst | ack) == syn"
_RST = "reject with tcp reset"
_UNREACHABLE = "reject with icmpx type port-unreachable"


class Terms(Value, frozen=True):
    """What the rules of a session depend on. Raises ValueError for a table or cgroup that cannot stand in a text."""

    table: str
    owner: str  # a remark in the table
    cgroup: str  # as nft finds it: below /sys/fs/cgroup
    level: int  # how deep the cgroup lies, as the kernel counts (mitmsec_redirect.nft_level)
    port_v4: int
    port_v6: int | None
    on_failure: OnFailure
    quic: Quic
    log_group: int | None  # None: nothing is logged, only counted
    udp: UdpGroups | None = None  # None: UDP flows are not seen, nor DNS

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.table):
            raise ValueError(f"{self.table!r} cannot be the name of a table")
        for text in (self.owner, self.cgroup):
            if _UNQUOTABLE.search(text):
                raise ValueError(f"{text!r} cannot stand in a rule")

    @property
    def is_closed(self) -> bool:
        return self.on_failure is OnFailure.CLOSED


def create(terms: Terms) -> str:
    """The table; fails if there is one of this name."""
    counters = [f"counter {name} {{ }}" for name in (DIVERTED, *REASONS)]
    sets = nft_udp_rules.sets() if terms.udp is not None else ()
    alive = f"set {ALIVE} {{ type inet_proto; flags timeout; timeout {ALIVE_S}s; elements = {{ tcp, udp }}; }}"
    head = f'create table {FAMILY} {terms.table} {{ comment "{terms.owner}"; }}'
    return "\n".join([head, *_table(terms, *counters, *sets, alive, *_chains(terms))])


def replace(terms: Terms) -> str:
    """Other terms for an existing table; its counters go on."""
    return f"flush table {FAMILY} {terms.table}\n" + "\n".join(_table(terms, *_chains(terms)))


def detach(terms: Terms) -> str:
    """No packet is looked at any more. The rest stays: it is what keeps live connections translated.

    The kernel ends conntrack in a namespace with the last rule that needs it, and translation with the last nat chain.
    """
    hooked = ["judge", "divert", *(["guard"] if terms.is_closed else [])]
    hooked += nft_udp_rules.HOOKED if terms.udp is not None else ()
    return "".join(f"flush chain {FAMILY} {terms.table} {chain}\n" for chain in hooked)


def delete(table: str) -> str:
    """Everything goes, and it is no error if it has gone already."""
    return f"table {FAMILY} {table}\ndelete table {FAMILY} {table}\n"


def levels(terms: Terms) -> str:
    """Another table, which counts what the cgroup sends, in the counter of the level at which the kernel sees that."""
    counters = [f"counter {level_counter(level)} {{ }}" for level in LEVELS]
    rules = [f"{_selected(terms, level)} counter name {level_counter(level)}" for level in LEVELS]
    chain = _chain("sent", "type filter hook output priority 0; policy accept;", *rules)
    return "\n".join(_table(terms, *counters, chain))


def level_counter(level: int) -> str:
    return f"level_{level}"


def _selected(terms: Terms, level: int) -> str:
    return f'socket cgroupv2 level {level} "{terms.cgroup}"'


def _table(terms: Terms, *parts: str) -> Iterator[str]:
    yield f"table {FAMILY} {terms.table} {{"
    yield from parts
    yield "}\n"


def _chains(terms: Terms) -> Iterator[str]:
    """Called chains first: nft resolves a jump from what it has read."""
    yield _chain("attempts", *_attempts(terms))
    yield _chain("quic", *_quic(terms))
    yield _chain("diverting", *_diverting(terms))
    selected = _selected(terms, terms.level)
    judge = [f"{_FIRST_SEGMENT} {selected} jump attempts"]
    if terms.quic.unled is Quic.REFUSE:
        judge.append(f"udp dport 443 {selected} jump quic")
    yield _chain("judge", "type filter hook output priority -150; policy accept;", *judge)
    divert = f"{_FIRST_SEGMENT} {selected} jump diverting"
    yield _chain("divert", "type nat hook output priority -100; policy accept;", divert)
    if terms.is_closed:
        yield _chain("astray", *_astray(terms))
        guard = f"{_FIRST_SEGMENT} {selected} jump astray"
        yield _chain("guard", "type filter hook output priority 50; policy accept;", guard)
    for name, rules in nft_udp_rules.chains(selected, terms.udp) if terms.udp is not None else ():
        yield _chain(name, *rules)


def _chain(name: str, *rules: str) -> str:
    return "\n".join([f"chain {name} {{", *rules, "}"])


def _to_the_gate(terms: Terms) -> Iterator[str]:
    yield f"ip daddr 127.0.0.1 tcp dport {terms.port_v4}"
    if terms.port_v6 is not None:
        yield f"ip6 daddr ::1 tcp dport {terms.port_v6}"


def _attempts(terms: Terms) -> Iterator[str]:
    for match in _to_the_gate(terms):
        yield f"{match} {_denied(terms, Reason.OWN_LISTENER, _RST)}"
    if terms.is_closed:
        for match, reason in _failures(terms):
            yield f"{match} {_denied(terms, reason, _RST)}"


def _failures(terms: Terms) -> Iterator[tuple[str, Reason]]:
    yield "ip6 daddr fe80::/10", Reason.LINK_LOCAL
    yield f"meta l4proto != @{ALIVE}", Reason.GATE_STALLED
    if terms.port_v6 is None:
        yield "meta nfproto ipv6", Reason.NO_IPV6_LISTENER


def _quic(terms: Terms) -> Iterator[str]:
    refused = _denied(terms, Reason.QUIC_REFUSED, _UNREACHABLE)
    if terms.is_closed:
        yield refused
    else:
        yield f"meta l4proto @{ALIVE} {refused}"
        yield f"ct state new {_passed(terms, Reason.GATE_STALLED)}"


def _diverting(terms: Terms) -> Iterator[str]:
    """With `closed`, what must not pass has been refused by `attempts`; what got here in time is diverted."""
    if not terms.is_closed:
        for match, reason in _failures(terms):
            yield f"{match} {_passed(terms, reason)}"
    yield f"meta nfproto ipv4 meta l4proto tcp counter name {DIVERTED} redirect to :{terms.port_v4}"
    if terms.port_v6 is not None:
        yield f"meta nfproto ipv6 meta l4proto tcp counter name {DIVERTED} redirect to :{terms.port_v6}"


def _astray(terms: Terms) -> Iterator[str]:
    for match in _to_the_gate(terms):
        yield f"{match} return"
    yield _denied(terms, Reason.NO_MEMORY, _RST)


def _denied(terms: Terms, reason: Reason, verdict: str) -> str:
    return f"{_told(terms, reason, DENIED)} {verdict}"


def _passed(terms: Terms, reason: Reason) -> str:
    return f"{_told(terms, reason, PASSED)} accept"


def _told(terms: Terms, reason: Reason, became: str) -> str:
    counted = f"counter name {reason}"
    if terms.log_group is None:
        return counted
    return f'{counted} log prefix "{reason} {became}" group {terms.log_group} snaplen {SNAPLEN_BYTES}'
