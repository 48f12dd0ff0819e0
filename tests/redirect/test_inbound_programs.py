"""Which programs there are, and how large: one more on each hook that they share with the connect hook's."""

from __future__ import annotations

import pytest
from msgspec.structs import fields

from mitmsec_redirect import inbound_programs
from mitmsec_redirect.assembler import Helper
from mitmsec_redirect.bpf import Attach
from mitmsec_redirect.inbound_programs import InboundLayout
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steps import Selection

OFFSETS = Offsets(**{field.name: 8 * number for number, field in enumerate(fields(Offsets))})
SELECTIONS = [None, Selection(7, 8, everything=False), Selection(7, 8, everything=True)]


def calls(code: bytes) -> list[int]:
    """The helpers that a program calls, in the order in which they stand."""
    instructions = [code[at : at + 8] for at in range(0, len(code), 8)]
    return [int.from_bytes(one[4:], "little") for one in instructions if one[0] == 0x85]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_there_is_one_for_sockets_and_one_for_accepts(selection: Selection | None) -> None:
    built = inbound_programs.build(InboundLayout(1, 2, 3, OFFSETS, selection))
    assert {Attach[name] for name in built} == {Attach.SOCK_OPS, Attach.GETPEERNAME4, Attach.GETPEERNAME6}
    assert built["GETPEERNAME4"] == built["GETPEERNAME6"], "nothing is led to the gate: no name is changed"


def test_who_is_not_selected_is_looked_up_only_under_a_selection() -> None:
    alone, selected = (
        inbound_programs.build(InboundLayout(1, 2, 3, OFFSETS, selection))["GETPEERNAME4"]
        for selection in SELECTIONS[:2]
    )
    assert Helper.PID_TGID not in calls(alone)
    assert Helper.PID_TGID in calls(selected)


def test_an_accept_that_was_seen_before_costs_one_look_into_the_socket() -> None:
    code = inbound_programs.build(InboundLayout(1, 2, 3, OFFSETS))["GETPEERNAME4"]
    assert calls(code)[:2] == [Helper.SK_STORAGE_GET, Helper.CURRENT_TASK]
