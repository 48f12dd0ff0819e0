"""Which address to ask about, so that one answer holds for a whole prefix.

The kernel's answer for a destination depends on the set of prefixes that cover it, in whatever tables and order. So two
destinations that are covered by the same prefixes get the same answer, and one *witness* stands for each prefix: an
address in it that lies in no longer prefix of the set.

    10.0.0.0/8   ├──────────────────────────────────────┤   witness of /8: the first address in no gap-less child
    10.0.0.0/16  ├──────┤                                    10.1.0.0
    10.2.0.0/16             ├──────┤

IPv6 source addresses also depend on how the destination compares with our own addresses (RFC 6724 §5, rule 8), so the
prefixes at which two of our addresses part are boundaries as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from mitmsec.core.model import Value


class Prefix(Value, frozen=True, order=True):
    """The addresses whose first `length` bits are those of `first`; `width` is 32 or 128."""

    first: int
    length: int
    width: int

    @classmethod
    def of(cls, address: bytes, length: int) -> Prefix:
        """Bits of `address` (4 or 16 bytes) beyond `length` are dropped."""
        width = len(address) * 8
        host = width - length
        return cls(first=int.from_bytes(address) >> host << host, length=length, width=width)

    @property
    def last(self) -> int:
        return self.first | ((1 << (self.width - self.length)) - 1)


def witnesses(prefixes: Iterable[Prefix]) -> Iterator[tuple[Prefix, bytes]]:
    """Each prefix once, with its witness. A prefix that longer ones cover wholly has none and is left out.

    All prefixes must have the same width.
    """
    ordered = sorted(set(prefixes))  # a prefix comes before what lies in it
    for index, prefix in enumerate(ordered):
        free = _first_free(prefix, ordered, index + 1)
        if free is not None:
            yield prefix, free.to_bytes(prefix.width // 8)


def _first_free(prefix: Prefix, ordered: Sequence[Prefix], index: int) -> int | None:
    free = prefix.first
    while index < len(ordered) and ordered[index].first <= free:
        free = max(free, ordered[index].last + 1)
        index += 1
    return free if free <= prefix.last else None


def partings(addresses: Iterable[tuple[bytes, int]]) -> Iterator[Prefix]:
    """The prefixes in which one of our addresses matches a destination longer than another does.

    `addresses` are our own, with their prefix lengths; bits beyond that length do not count (RFC 6724 §5).
    """
    for (one, one_length), (other, other_length) in combinations(addresses, 2):
        common = len(one) * 8 - (int.from_bytes(one) ^ int.from_bytes(other)).bit_length()
        for address, length in ((one, one_length), (other, other_length)):
            yield Prefix.of(address, min(common + 1, length))
