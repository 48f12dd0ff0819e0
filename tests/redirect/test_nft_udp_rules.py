"""The text of the rules for UDP, and the keys of what they count. What they do is in test_nft_udp."""

from __future__ import annotations

import re

import pytest

from mitmsec.core.model import Endpoint
from mitmsec_redirect import nft_udp_rules
from mitmsec_redirect.nft_udp_rules import FLOWS, SENT, Ends, UdpGroups

CHAINS = dict(nft_udp_rules.chains('socket cgroupv2 level 1 "a"', UdpGroups(flows=6, dns=7)))


def test_others_are_compared_with_a_protocol_and_a_cgroup() -> None:
    for name in nft_udp_rules.HOOKED:
        head, rule = CHAINS[name]
        assert head.startswith("type filter hook")
        assert rule.startswith('meta l4proto udp socket cgroupv2 level 1 "a" jump udp_')


def test_no_rule_decides_anything() -> None:
    rules = [rule for name, rules in CHAINS.items() for rule in rules[name in nft_udp_rules.HOOKED :]]
    assert not [rule for rule in rules if re.search(r"\b(accept|drop|reject|queue)\b", rule)]


def test_whatever_is_named_is_there_and_whatever_is_there_is_named() -> None:
    text = "\n".join(rule for rules in CHAINS.values() for rule in rules)
    assert {"set " + name for name in re.findall(r"@(\w+)", text)} == {
        line.partition(" {")[0] for line in nft_udp_rules.sets() if line.startswith("set ")
    }
    assert set(re.findall(r"(?:jump|goto) (\w+)", text)) == CHAINS.keys() - set(nft_udp_rules.HOOKED)
    assert set(re.findall(r"@(\w+)", text)) == set(nft_udp_rules.set_names())


def test_only_name_servers_packets_are_copied_whole() -> None:
    copying = {name: [rule for rule in rules if "group 7" in rule] for name, rules in CHAINS.items()}
    assert {name: rules for name, rules in copying.items() if rules} == {
        "udp_sent": ["udp dport 53 log group 7 snaplen 1504"],
        "udp_received": ["udp sport 53 log group 7 snaplen 1504"],
    }


def test_what_is_counted_both_ways_has_the_programs_end_first() -> None:
    assert CHAINS["udp_sent_4"][0].startswith("ip saddr . udp sport . ip daddr . udp dport @flows_4")
    assert CHAINS["udp_received_6"][0].startswith("ip6 daddr . udp dport . ip6 saddr . udp sport @flows_6")


@pytest.mark.parametrize(
    ("local", "remote", "key", "name"),
    [
        ("10.0.0.1", "9.9.9.9", "0a000001 01020000 09090909 00350000", "sent_4"),
        ("::1", "::2", f"{1:032x} 01020000 {2:032x} 00350000", "sent_6"),
    ],
)
def test_a_key_is_what_the_kernel_has_for_it(local: str, remote: str, key: str, name: str) -> None:
    ends = Ends(Endpoint.of(local, 0x102), Endpoint.of(remote, 53))
    assert (ends.key, ends.set(SENT)) == (bytes.fromhex(key.replace(" ", "")), name)
    assert ends.set(FLOWS) in nft_udp_rules.set_names()
