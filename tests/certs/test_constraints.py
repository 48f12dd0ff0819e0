"""For which names a CA may speak."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs.constraints import UNCONSTRAINED, WRONG_NAME, BadConstraint, Constraints, written

labels = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.ip_addresses().map(lambda address: address.compressed)


def test_without_a_word_every_name_is_allowed() -> None:
    assert written([], []) == UNCONSTRAINED
    assert UNCONSTRAINED.are_none
    assert all(UNCONSTRAINED.allow(name) for name in ("www.example", "192.0.2.1", "::1", WRONG_NAME))


def test_a_permitted_name_stands_for_itself_and_all_below_and_for_nothing_else() -> None:
    limit = written(["Corp.Example."], [])
    assert not limit.are_none
    assert limit.permitted == ("corp.example",)
    assert [limit.allow(name) for name in ("corp.example", "a.b.corp.example")] == [True, True]
    assert [limit.allow(name) for name in ("acorp.example", "example", "corp.example.net")] == [False] * 3
    assert not limit.allow("10.0.0.1")
    assert not limit.allow("2001:db8::1")


def test_a_permitted_network_stands_for_its_addresses_and_for_no_name() -> None:
    limit = written(["10.0.0.0/8", "[2001:db8::7]"], [])
    assert limit.permitted == ("10.0.0.0/8", "2001:db8::7/128")
    assert limit.allow("10.1.2.3")
    assert limit.allow("2001:db8::7")
    assert [limit.allow(name) for name in ("11.0.0.1", "2001:db8::8", "corp.example")] == [False] * 3


def test_what_is_excluded_stays_so_whatever_is_permitted() -> None:
    limit = written(["corp.example", "10.0.0.0/8"], ["hr.corp.example", "10.9.0.0/16"])
    assert limit.excluded == ("hr.corp.example", "10.9.0.0/16")
    assert [limit.allow(name) for name in ("www.corp.example", "10.1.0.1")] == [True, True]
    assert [limit.allow(name) for name in ("hr.corp.example", "x.hr.corp.example", "10.9.0.1")] == [False] * 3


def test_excluding_alone_leaves_the_rest() -> None:
    limit = written([], ["bank.example"])
    assert limit.allow("www.example")
    assert limit.allow("192.0.2.1")
    assert not limit.allow("www.bank.example")


def test_a_leading_dot_of_another_ca_means_what_is_below_only() -> None:
    limit = Constraints(permitted_names=(".corp.example",))
    assert limit.allow("www.corp.example")
    assert not limit.allow("corp.example")


def test_an_empty_name_of_another_ca_covers_every_name() -> None:
    assert Constraints(permitted_names=("",), excluded_networks=("0.0.0.0/0",)).allow("www.example")
    assert not Constraints(excluded_names=("",)).allow("www.example")


def test_the_name_of_a_mirrored_failure_is_allowed_always() -> None:
    """It exists nowhere, so nothing is gained by it but an honest failure."""
    assert all(limit.allow(WRONG_NAME) for limit in (written(["corp.example"], []), written([], ["invalid"])))


def test_a_name_in_another_script_is_written_as_it_is_in_certificates() -> None:
    assert written(["bücher.example"], []).permitted == ("xn--bcher-kva.example",)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("*.corp.example", "stands for all below it"),
        ("10.0.0.1/8", '"10.0.0.0/8" is the one'),
        ("10.0.0.0/33", "no network"),
        ("not a name", "is wanted"),
        ("", "is wanted"),
        ("http://x.example/", "is wanted"),
    ],
)
def test_what_is_neither_name_nor_network_is_refused_with_what_to_write(word: str, words: str) -> None:
    with pytest.raises(BadConstraint, match=words):
        written([word], [])
    with pytest.raises(BadConstraint, match=words):
        written([], [word])


@given(names, names)
def test_a_name_below_a_permitted_one_is_allowed_and_below_an_excluded_one_is_not(base: str, below: str) -> None:
    assert written([base], []).allow(f"{below}.{base}")
    assert not written([], [base]).allow(f"{below}.{base}")


@given(addresses, st.integers(0, 32))
def test_an_address_is_allowed_by_a_network_that_holds_it(address: str, bits: int) -> None:
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    assert written([str(network)], []).allow(address)
    assert not written([], [str(network)]).allow(address)


def test_all_that_is_wrong_is_told_at_once_and_what_is_permitted_is_not_excluded_to_the_last() -> None:
    with pytest.raises(BadConstraint) as refused:
        written(["a b", "10.0.0.0/33", "corp.example"], ["*.x.example", "corp.example"])
    assert len(refused.value.flaws) == 4
    for permitted, excluded in (("a.corp.example", "corp.example"), ("10.1.0.0/16", "10.0.0.0/8")):
        with pytest.raises(BadConstraint, match="all of it is excluded"):
            written([permitted], [excluded])
        assert written([excluded], [permitted]).permitted == (excluded,)
    assert written(["10.0.0.0/8"], ["::/0"]).excluded == ("::/0",)
