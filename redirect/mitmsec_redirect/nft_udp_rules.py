"""The rules that count a session's UDP flows and copy its DNS, as text for nft(8), and the keys of their sets.

    datagram of the cgroup, leaving (output, −140) or coming in (input, 150)
      ├─ to or from port 53 ───► a copy of it: NFLOG, for the gate
      ├─ in `flows` ───────────► counted in `sent` or `received`
      └─ new ─► udp_new ─► beyond RATE? ─ no ─► into `flows`, counted, its head: NFLOG, for the supervisor
                                └─ yes ─► nothing is kept of it: the next one of its flow is new, too

After the rules that refuse QUIC, and before others' translate (output, −100): the remote is the one that the program
named. Coming in, it is so again once the kernel has translated back (input, 100); what others drop is not counted.

An element lives until it is removed. The time that its set gives it says only when it was last counted: a look-up in
a set with counters would count as well (Linux 5.7), so membership has a set of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from mitmsec.core.model import Endpoint, Value

NEW = "udp_new"
SENT, RECEIVED, FLOWS = "sent", "received", "flows"
HOOKED: Final = ("udp_out", "udp_in")
LIMIT = 16384  # flows of each family; user space has done with half of them
RATE = "1000/second burst 300 packets"  # a flow costs the supervisor a third of a millisecond
KEPT_MS = 7 * 24 * 3600 * 1000
HEAD_BYTES, DNS_BYTES = 128, 1504  # of a packet, as far as it is copied

_FAMILIES: Final = ((4, "ip"), (6, "ip6"))


class UdpGroups(Value, frozen=True):
    """Where packets are logged to: the heads of new flows' first datagrams, and what goes to and from name servers."""

    flows: int
    dns: int


class Ends(Value, frozen=True):
    """A flow as the rules know it."""

    local: Endpoint
    remote: Endpoint

    @property
    def key(self) -> bytes:
        """Of its elements: each value is filled up to a multiple of four bytes."""
        return b"".join(
            ip_address(end.address).packed + end.port.to_bytes(2) + bytes(2) for end in (self.local, self.remote)
        )

    def set(self, name: str) -> str:
        """The set of this name (SENT, RECEIVED, FLOWS) that it is in."""
        return f"{name}_{6 if self.local.is_v6 else 4}"


def sets() -> Iterator[str]:
    """What has to be in the table, before any rule: also the counter of what is new."""
    yield f"counter {NEW} {{ }}"
    for version, _ in _FAMILIES:
        kind = f"type ipv{version}_addr . inet_service . ipv{version}_addr . inet_service; size {LIMIT};"
        yield f"set {FLOWS}_{version} {{ {kind} flags dynamic; }}"
        for name in (SENT, RECEIVED):
            yield f"set {name}_{version} {{ {kind} flags dynamic,timeout; timeout {KEPT_MS // 1000}s; }}"


def set_names() -> list[str]:
    return [f"{name}_{version}" for version, _ in _FAMILIES for name in (FLOWS, SENT, RECEIVED)]


def chains(selected: str, groups: UdpGroups) -> Iterator[tuple[str, list[str]]]:
    """Each chain's name and rules, called ones first. `selected` is what matches a packet of the session."""
    for way, mine, theirs in ((SENT, "saddr . udp sport", "daddr . udp dport"),
                              (RECEIVED, "daddr . udp dport", "saddr . udp sport")):  # fmt: skip
        for version, ip in _FAMILIES:
            yield f"udp_{way}_{version}", list(_counting(way, version, f"{ip} {mine} . {ip} {theirs}", groups))
        port = "dport" if way is SENT else "sport"
        yield (
            f"udp_{way}",
            [
                f"udp {port} 53 log group {groups.dns} snaplen {DNS_BYTES}",
                *(f"meta nfproto ipv{version} goto udp_{way}_{version}" for version, _ in _FAMILIES),
            ],
        )
    for chain, way, hook in zip(HOOKED, (SENT, RECEIVED), ("output priority -140", "input priority 150"), strict=True):
        yield chain, [f"type filter hook {hook}; policy accept;", f"meta l4proto udp {selected} jump udp_{way}"]


def _counting(way: str, version: int, key: str, groups: UdpGroups) -> Iterator[str]:
    counted = f"update @{way}_{version} {{ {key} counter }}"
    yield f"{key} @{FLOWS}_{version} {counted} return"
    yield f"counter name {NEW}"
    yield f"limit rate over {RATE} return"
    # a set that is full ends the rule: so what is in `flows` is counted and told, and what is not is new next time, too
    yield f"{counted} add @{FLOWS}_{version} {{ {key} }} log group {groups.flows} snaplen {HEAD_BYTES}"
