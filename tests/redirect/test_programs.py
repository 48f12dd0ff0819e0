"""The programs as code; what they do is seen in test_connect_hook."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import fields, replace

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect.bpf import Attach
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.programs import Layout, build

CALL, EXIT = 0x85, 0x95


def layout(on_failure: OnFailure = OnFailure.OPEN, quic: Quic = Quic.REFUSE) -> Layout:
    return Layout(
        origins=3,
        truth=4,
        missed=5,
        counts=6,
        namespaces=7,
        routes=8,
        heartbeat=9,
        settings=10,
        on_failure=on_failure,
        quic=quic,
    )


@pytest.mark.parametrize(("on_failure", "quic"), list(itertools.product(OnFailure, Quic)))
def test_every_program_is_whole_and_ends_with_an_exit(on_failure: OnFailure, quic: Quic) -> None:
    for name, code in build(layout(on_failure, quic)).items():
        assert Attach[name]
        assert len(code) % 8 == 0
        assert code[-8] == EXIT


def test_sendmsg_is_hooked_only_where_quic_is_refused() -> None:
    refused, passed = build(layout()), build(layout(quic=Quic.BYPASS))
    assert set(refused) - set(passed) == {"SENDMSG4", "SENDMSG6"}


def test_a_layout_decides_the_code_and_nothing_else_does() -> None:
    assert build(layout()) == build(layout())
    assert build(layout(OnFailure.CLOSED))["CONNECT4"] != build(layout())["CONNECT4"]


def test_only_programs_that_describe_an_attempt_look_at_the_caller() -> None:
    somewhere = Offsets(*range(0, 8 * len(fields(Offsets)), 8))
    plain, telling = build(layout()), build(replace(layout(), offsets=somewhere))
    assert {name for name in plain if plain[name] != telling[name]} == {"CONNECT4", "CONNECT6", "SENDMSG4", "SENDMSG6"}


def test_where_its_executable_lies_is_noted_by_the_same_programs() -> None:
    telling = replace(layout(), offsets=Offsets(*range(0, 8 * len(fields(Offsets)), 8)))
    noting = replace(telling, paths=PathMaps(11, 12))
    told, noted = build(telling), build(noting)
    assert {name for name in told if told[name] != noted[name]} == {"CONNECT4", "CONNECT6", "SENDMSG4", "SENDMSG6"}


def test_names_do_no_more_than_one_look_up() -> None:
    for name in ("GETPEERNAME4", "GETPEERNAME6", "GETSOCKNAME4", "GETSOCKNAME6"):
        code = build(layout())[name]
        assert [code[at] for at in range(0, len(code), 8)].count(CALL) == 1
