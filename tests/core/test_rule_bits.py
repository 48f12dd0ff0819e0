"""A value's rules, for each kind of condition."""

from __future__ import annotations

import pytest

from mitmsec.core import rule_bits
from mitmsec.core.host_lists import HostList, Listed
from mitmsec.core.names import name_and_parents
from mitmsec.core.rule_bits import Addresses, Globs, Hosts, Ports, Words, free, lowest, numbers


def test_bits_are_numbers_of_rules() -> None:
    assert (lowest(0), lowest(0b1), lowest(0b1010), lowest(-1)) == (None, 0, 1, 0)
    assert list(numbers(0b101001)) == [0, 3, 5]
    assert free([(), ("x",), []]) == 0b101


def test_ports_lie_in_ranges_that_may_touch_and_overlap() -> None:
    ports = Ports([[(22, 22)], [], [(20, 22), (23, 30)], [(1, 65535)]])
    asked = {0: 0b0010, 1: 0b1010, 20: 0b1110, 22: 0b1111, 23: 0b1110, 30: 0b1110, 31: 0b1010, 65535: 0b1010}
    assert {port: ports.rules(port) for port in asked} == asked


def test_a_word_that_is_not_known_fulfils_no_condition() -> None:
    words = Words([["a", "b"], ["b"], []])
    assert [words.rules(word) for word in ("a", "b", "c", None)] == [0b101, 0b111, 0b100, 0b100]


def test_a_name_is_within_all_patterns_above_it() -> None:
    lists = Listed([HostList.of("@f", "a.example")])
    hosts = Hosts([["a.example"], ["*.example"], ["b.test", "@f"], []], lists)
    asked = {"a.example": 0b1111, "x.a.example": 0b1110, "example": 0b1000, "b.test": 0b1100}
    assert {name: hosts.rules(name_and_parents(name), lists.holding(name)) for name in asked} == asked
    assert hosts.rules((), 0) == 0b1000


def test_an_address_is_within_networks_of_its_own_family() -> None:
    addresses = Addresses([["10.0.0.0/8", "10.1.0.0/16"], ["10.1.2.3/32", "2001:db8::/32"], ["0.0.0.0/0"], []])
    asked = {
        "10.1.2.3": 0b1111,
        "10.9.9.9": 0b1101,
        "192.0.2.1": 0b1100,
        "2001:db8::9": 0b1010,
        "::1": 0b1000,
        "": 0b1000,
    }
    assert {address: addresses.rules(address) for address in asked} == asked


def test_one_of_several_texts_is_enough_for_a_glob() -> None:
    globs = Globs([["h2"], ["http/*", "x"], [], ["?2"]])
    asked = {(): 0b0100, ("h2",): 0b1101, ("http/1.1",): 0b0110, ("y", "x"): 0b0110, ("h2", "x"): 0b1111}
    assert {shown: globs.rules(shown) for shown in asked} == asked


def test_what_peers_choose_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_bits, "REMEMBERED", 3)
    globs, addresses = Globs([["h*"]]), Addresses([["10.0.0.0/8"]])
    for number in range(9):
        assert globs.rules((f"h{number}",)) == addresses.rules(f"10.0.0.{number}") == 1
        assert max(len(globs._known), len(addresses._known)) <= 3
