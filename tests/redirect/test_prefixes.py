"""One witness for each prefix that has an address of its own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.prefixes import Prefix, partings, witnesses


def prefix(text: str) -> Prefix:
    network = ip_network(text)
    return Prefix.of(network.network_address.packed, network.prefixlen)


def found(*texts: str) -> dict[Prefix, str]:
    return {one: str(ip_address(witness)) for one, witness in witnesses(map(prefix, texts))}


def test_a_witness_lies_in_no_longer_prefix() -> None:
    assert found("10.0.0.0/8", "10.0.0.0/16", "10.2.0.0/16", "10.0.0.0/32") == {
        prefix("10.0.0.0/8"): "10.1.0.0",
        prefix("10.0.0.0/16"): "10.0.0.1",
        prefix("10.2.0.0/16"): "10.2.0.0",
        prefix("10.0.0.0/32"): "10.0.0.0",
    }


def test_a_prefix_that_is_covered_wholly_has_none() -> None:
    assert set(found("10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31")) == {prefix("10.0.0.0/31"), prefix("10.0.0.2/31")}


@given(st.sets(st.tuples(st.integers(0, 15), st.integers(0, 4)), max_size=12))
def test_every_address_has_the_witness_of_its_longest_prefix(shapes: set[tuple[int, int]]) -> None:
    """In a space of 16 addresses: what covers an address covers its witness, and nothing else does."""
    prefixes = {Prefix(first >> (4 - length) << (4 - length), length, 4) for first, length in shapes}
    told = {one: one.first for one in prefixes} and dict(_small(prefixes))
    for address in range(16):
        covering = {one for one in prefixes if one.first <= address <= one.last}
        if covering:
            witness = told[max(covering, key=lambda one: one.length)]
            assert {one for one in prefixes if one.first <= witness <= one.last} == covering


def _small(prefixes: set[Prefix]) -> list[tuple[Prefix, int]]:
    wide = {Prefix(one.first << 28, one.length, 32): one for one in prefixes}
    return [(wide[one], int.from_bytes(witness) >> 28) for one, witness in witnesses(wide)]


def test_addresses_part_at_the_first_bit_that_differs() -> None:
    one, other = ip_address("2001:db8::1").packed, ip_address("2001:db9::1").packed
    assert set(partings([(one, 64), (other, 64)])) == {prefix("2001:db8::/32"), prefix("2001:db9::/32")}


def test_bits_beyond_the_prefix_length_do_not_part_addresses() -> None:
    one, other = ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed
    assert set(partings([(one, 64), (other, 64)])) == {prefix("2001:db8::/64")}
