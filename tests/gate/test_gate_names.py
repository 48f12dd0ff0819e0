"""The bounded memory of names and the addresses that answered for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Action, Endpoint
from mitmsec.gate.names import ADDRESSES_LIMIT, Names


def at(number: int, port: int = 443) -> Endpoint:
    return Endpoint(address=f"192.0.2.{number}", port=port)


def test_others_are_the_addresses_of_the_same_name_and_port_newest_first() -> None:
    names = Names()
    for number, port in ((1, 443), (2, 443), (3, 8443), (1, 443)):
        names.answered("a.test", at(number, port), Action.BYPASS)
    names.answered("b.test", at(9), Action.BYPASS)
    assert names.others("a.test", at(5), Action.BYPASS) == (at(1), at(2))
    assert names.others("a.test", at(1), Action.BYPASS) == (at(2),)
    assert names.others("c.test", at(1), Action.BYPASS) == ()
    assert names.others("a.test", at(5), Action.DECRYPT) == ()  # which have other proofs


def test_the_name_used_least_recently_is_forgotten_first() -> None:
    names = Names(limit=2)
    for name in ("a.test", "b.test", "a.test", "c.test"):
        names.answered(name, at(1), Action.BYPASS)
    assert [bool(names.others(name, at(2), Action.BYPASS)) for name in ("a.test", "b.test", "c.test")] == [
        True,
        False,
        True,
    ]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20)), max_size=100))
def test_the_memory_never_exceeds_its_bounds(answers: list[tuple[str, int]]) -> None:
    names = Names(limit=3)
    for name, number in answers:
        names.answered(name, at(number), Action.BYPASS)
        assert len(names) <= 3
        assert len(names.others(name, at(99), Action.BYPASS)) <= ADDRESSES_LIMIT
        assert at(number) in names.others(name, at(99), Action.BYPASS)
