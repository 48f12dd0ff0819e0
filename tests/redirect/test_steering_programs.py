"""The program that leads connections to the gate: what it may do follows from the terms."""

from __future__ import annotations

import pytest

from mitmsec.core.model import OnFailure
from mitmsec_redirect.assembler import Helper
from mitmsec_redirect.steering_programs import SteeringLayout, build

EXIT, DROP = bytes.fromhex("9500000000000000"), bytes.fromhex("b700000000000000")


def built(on_failure: OnFailure) -> list[bytes]:
    code = build(SteeringLayout(1, 2, 3, 4, 5, on_failure))
    return [code[at : at + 8] for at in range(0, len(code), 8)]


@pytest.mark.parametrize("on_failure", OnFailure)
def test_only_a_closed_policy_refuses_anything(on_failure: OnFailure) -> None:
    code = built(on_failure)
    drops = [at for at, one in enumerate(code[:-1]) if one == DROP and code[at + 1] == EXIT]
    assert len(drops) == (1 if on_failure is OnFailure.CLOSED else 0)


def test_an_address_is_looked_up_only_where_nobody_listens_on_all() -> None:
    calls = [int.from_bytes(one[4:], "little") for one in built(OnFailure.OPEN) if one[0] == 0x85]
    assert calls.count(Helper.MAP_LOOKUP) == 6, "served by all, by one, a leg, the heartbeat, a gate, a count"


def test_what_it_takes_from_the_map_it_gives_back() -> None:
    calls = [int.from_bytes(one[4:], "little") for one in built(OnFailure.OPEN) if one[0] == 0x85]
    assert calls.count(Helper.SK_ASSIGN) == calls.count(Helper.SK_RELEASE) == 1
    assert calls.index(Helper.SK_ASSIGN) < calls.index(Helper.SK_RELEASE)
