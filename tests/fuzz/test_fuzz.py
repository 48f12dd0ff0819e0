"""What fuzzing has reached is reached again, and a short round of it finds nothing. The long one is `make fuzz`."""

from __future__ import annotations

import hashlib
from random import Random

import fuzz_divert
import fuzz_targets
import pytest
from fuzz_choices import Choices
from fuzz_targets import CORPUS, INPUT_LIMIT_BYTES, TARGETS

from mitmsec.core import clienthello, dns
from mitmsec.core.quic_opening import QuicOpening
from mitmsec_redirect import divert_engine, nat, packet
from mitmsec_redirect.coverage import Coverage
from mitmsec_redirect.divert_engine import DivertEngine

ROUND = 1500  # inputs a target, about a second


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_passes(name: str) -> None:
    inputs = fuzz_targets.corpus(name)
    assert len(inputs) > 20
    for data in (*inputs.values(), *fuzz_targets.seeds(name)):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_round_from_the_corpus_finds_nothing(name: str) -> None:
    """The same inputs each time: what fails here fails again."""
    random, inputs = Random(name), [*fuzz_targets.corpus(name).values(), *fuzz_targets.seeds(name)]
    for _ in range(ROUND):
        data = fuzz_targets.mutated(random, inputs)
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name}: {data.hex()}") from error


def test_the_corpus_is_what_its_names_say_and_of_known_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for path in CORPUS.glob("*/*"):
        data = path.read_bytes()
        assert hashlib.sha1(data).hexdigest() == path.name
        assert len(data) <= INPUT_LIMIT_BYTES


def test_choices_never_end() -> None:
    choices = Choices(b"\x07\x01rest")
    assert (choices.below(5), choices.flag(), choices.rest()) == (2, True, b"rest")
    assert not choices
    assert (choices.below(5), choices.one_of("ab"), choices.rest()) == (0, "a", b"")


def test_limits_are_small_only_while_the_engine_is_fuzzed() -> None:
    usual = [getattr(module, name) for module, name, _ in fuzz_divert.SMALL]
    fuzz_divert.attempt(bytes(range(200)))
    assert [getattr(module, name) for module, name, _ in fuzz_divert.SMALL] == usual


# --- a fuzzer that finds nothing may be blind: each of these faults is one that it finds -----------------------------
def found(name: str) -> bool:
    for data in (*fuzz_targets.corpus(name).values(), *fuzz_targets.seeds(name)):
        try:
            TARGETS[name](data)
        except Exception:
            return True
    return False


def test_a_checksum_that_is_off_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat, "_growth", lambda before, after: 0xFFFF - before + after + 1)
    assert found("nat")


def test_ports_that_are_read_in_later_fragments_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = packet._IPV4.unpack_from

    class Blind:
        @staticmethod
        def unpack_from(buffer: bytes, offset: int) -> tuple[object, ...]:
            first, length, identification, bits, *rest = unpack(buffer, offset)
            return first, length, identification, bits & 0x2000, *rest

    monkeypatch.setattr(packet, "_IPV4", Blind)
    assert found("packet") or found("nat")


def test_a_flow_that_is_translated_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = DivertEngine._closed
    monkeypatch.setattr(DivertEngine, "_closed", lambda engine, flow: closed(engine, flow)[1:])
    assert found("divert")


def test_a_syn_that_is_held_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divert_engine, "HOLD_LIMIT_S", 1e9)
    assert found("divert")


def test_an_answer_that_more_bytes_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = clienthello._record_size

    def hasty(header: bytes) -> int | None:
        if len(header) < 5:
            raise clienthello._Bad("ends early")
        return patient(header)

    monkeypatch.setattr(clienthello, "_record_size", hasty)
    assert found("hello")


def test_a_name_that_is_longer_than_names_may_be_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "NAME_LIMIT_BYTES", 400)
    assert found("dns")


def test_a_flow_that_the_next_filter_does_not_take_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: the filter in force took the flow, the one that was being made did not."""
    monkeypatch.setattr(Coverage, "covers", lambda coverage, flow: coverage.in_force.cover(flow))
    assert found("divert")


def test_an_opening_that_more_datagrams_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(opening: QuicOpening, datagram: bytes) -> object:
        opening.answer = opening._read(datagram)
        return opening.answer

    monkeypatch.setattr(QuicOpening, "fed", restless)
    assert found("quic")
