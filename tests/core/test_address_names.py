"""Names of addresses: what counts as an answer, for how long, and what is said of a name that a flow shows."""

from __future__ import annotations

from dns_writer import AAAA, address, alias, query, response
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core import address_names
from mitmsec.core.address_names import AddressNames, Agreement, agreement
from mitmsec.core.dns import DnsMessage, parse
from mitmsec.core.model import Endpoint

PROGRAM, RESOLVER = Endpoint.of("10.0.0.1", 40_000), Endpoint.of("10.0.0.53", 53)
HERE = "192.0.2.1"


class Stage:
    def __init__(self) -> None:
        self.names = AddressNames()

    def asks(self, name: str, at_s: float = 0, number: int = 7, kind: int = 1, local: Endpoint = PROGRAM) -> None:
        self._heard(local, query(name, kind, number), at_s)

    def answered(
        self, name: str, *addresses: str, at_s: float = 0, number: int = 7, ttl_s: int = 60, local: Endpoint = PROGRAM
    ) -> None:
        records = [address(name, text, ttl_s) for text in addresses]
        self._heard(local, response(name, *records, number=number), at_s)

    def _heard(self, local: Endpoint, data: bytes, at_s: float) -> None:
        message = parse(data)
        assert isinstance(message, DnsMessage)
        self.names.heard(local, RESOLVER, message, at_s)

    def resolves(self, name: str, *addresses: str, at_s: float = 0, ttl_s: int = 60) -> None:
        self.asks(name, at_s)
        self.answered(name, *addresses, at_s=at_s, ttl_s=ttl_s)


def test_an_address_has_the_name_that_was_asked_for() -> None:
    stage = Stage()
    stage.resolves("a.test", HERE, "192.0.2.2")
    assert stage.names.names(HERE, 1) == stage.names.names("192.0.2.2", 1) == ("a.test",)
    assert stage.names.names("192.0.2.3", 1) == ()


def test_of_a_chain_of_aliases_the_first_name_is_the_one() -> None:
    stage = Stage()
    stage.asks("a.test")
    stage._heard(PROGRAM, response("a.test", alias("a.test", "cdn.test"), address("cdn.test", HERE)), 0)
    assert stage.names.names(HERE, 1) == ("a.test",)


def test_the_name_that_was_answered_last_is_the_first() -> None:
    stage = Stage()
    for at_s, name in enumerate(("a.test", "b.test", "a.test", "c.test")):
        stage.resolves(name, HERE, at_s=at_s)
    assert stage.names.names(HERE, 5) == ("c.test", "a.test", "b.test")


def test_what_nobody_asked_for_is_no_answer() -> None:
    stage = Stage()
    stage.answered("a.test", HERE)
    stage.asks("a.test", number=8)
    stage.answered("a.test", HERE)
    stage.asks("b.test")
    stage.answered("a.test", HERE)
    stage.asks("a.test", kind=AAAA)
    stage.answered("a.test", HERE)
    stage.asks("a.test", local=Endpoint.of("10.0.0.1", 40_001))
    stage.answered("a.test", HERE)
    assert len(stage.names) == 0


def test_a_question_is_answered_once_and_in_time() -> None:
    stage = Stage()
    stage.resolves("a.test", HERE)
    stage.answered("a.test", "192.0.2.66")
    stage.asks("a.test", at_s=100)
    stage.answered("a.test", "192.0.2.67", at_s=131)
    assert [stage.names.names(f"192.0.2.{last}", 132) for last in (1, 66, 67)] == [("a.test",), (), ()]


def test_the_case_of_letters_in_a_question_is_the_programs_own() -> None:
    stage = Stage()
    stage.asks("wWw.TeSt")
    stage.answered("www.test", HERE)
    assert stage.names.names(HERE, 1) == ("www.test",)


def test_what_is_no_hosts_name_names_nothing() -> None:
    stage = Stage()
    stage.resolves("a b.test", HERE)
    assert len(stage.names) == 0


def test_names_are_kept_for_as_long_as_programs_keep_addresses_and_no_longer() -> None:
    for ttl_s, kept_s in ((1, address_names.KEEP_LEAST_S), (3600, 3600.0), (2**31 - 1, address_names.KEEP_MOST_S)):
        stage = Stage()
        stage.resolves("a.test", HERE, ttl_s=ttl_s)
        assert stage.names.names(HERE, kept_s - 1) == ("a.test",)
        assert stage.names.names(HERE, kept_s) == ()
        assert len(stage.names) == 0


def test_one_name_may_be_forgotten_before_another() -> None:
    stage = Stage()
    stage.resolves("long.test", HERE, ttl_s=4000)
    stage.resolves("short.test", HERE, ttl_s=1)
    assert stage.names.names(HERE, 1000) == ("long.test",)


def test_a_later_answer_never_shortens_what_an_earlier_one_said() -> None:
    stage = Stage()
    stage.resolves("a.test", HERE, ttl_s=4000)
    stage.resolves("a.test", HERE, ttl_s=1, at_s=10)
    assert stage.names.names(HERE, 3000) == ("a.test",)


def test_a_flood_of_answers_and_questions_is_bounded() -> None:
    stage = Stage()
    for number in range(address_names.ADDRESSES_LIMIT + 50):
        stage.resolves("a.test", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(stage.names) == address_names.ADDRESSES_LIMIT
    assert stage.names.names("10.0.0.0", 1) == ()
    for number in range(20):
        stage.resolves(f"n{number}.test", HERE)
    assert len(stage.names.names(HERE, 1)) == address_names.NAMES_LIMIT
    stage.asks("first.test", number=1)
    for number in range(address_names.QUESTIONS_LIMIT):
        stage.asks("a.test", number=number + 2)
    stage.answered("first.test", "192.0.2.99", number=1)
    assert stage.names.names("192.0.2.99", 1) == ()


def test_a_name_that_a_flow_shows_agrees_disagrees_or_nobody_knows() -> None:
    assert agreement("a.test", ("b.test", "a.test")) is Agreement.AGREE
    assert agreement("a.test", ("b.test",)) is Agreement.DISAGREE
    assert agreement("a.test", ()) is Agreement.UNKNOWN


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 5000), st.integers(0, 400))))
def test_a_name_is_told_only_within_the_time_that_some_answer_gave_it(
    answers: list[tuple[str, int, int, int]],
) -> None:
    stage, now_s = Stage(), 0.0
    given_until: dict[tuple[str, str], float] = {}
    for name, last, ttl_s, step_s in answers:
        now_s += step_s
        stage.resolves(f"{name}.test", f"192.0.2.{last}", at_s=now_s, ttl_s=ttl_s)
        key = (f"{name}.test", f"192.0.2.{last}")
        kept_s = max(ttl_s, address_names.KEEP_LEAST_S)
        given_until[key] = max(given_until.get(key, 0.0), now_s + kept_s)
        for last_byte in range(4):
            text = f"192.0.2.{last_byte}"
            told = stage.names.names(text, now_s)
            assert set(told) == {one for (one, at), until_s in given_until.items() if at == text and until_s > now_s}
