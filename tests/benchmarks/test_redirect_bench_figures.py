"""What callers and the counting origin say, read into figures; and the thresholds."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Metric, Row, summarise
from benchmarks.outputs import Unreadable
from benchmarks.redirect.figures import (
    BESIDE,
    DIRECT,
    EXPLICIT,
    FLOOR,
    HOOK,
    WINDIVERT,
    Arrivals,
    checks,
    looped,
    parse_connect,
    parse_loop,
)

CONNECTED = {"connect_p50_us": 54.2, "connect_p99_us": 310.0, "answer_p50_us": 181.0, "udp_connect_us": 1.2}


def row(variant: str, **medians: float) -> Row:
    return Row(variant, summarise([{Metric[name]: value for name, value in medians.items()}]))


def test_connect_times_are_read_by_name():
    assert parse_connect(json.dumps(CONNECTED | {"more": 1})) == {Metric(name): us for name, us in CONNECTED.items()}


@pytest.mark.parametrize("text", ["", "Traceback", "[]", '{"connect_p50_us": 1}', '{"made": "many"}', "3"])
def test_anything_else_is_unreadable(text):
    with pytest.raises(Unreadable):
        parse_connect(text)
    with pytest.raises(Unreadable):
        parse_loop(text)


@given(st.text())
def test_any_text_is_figures_or_unreadable(text):
    with suppress(Unreadable):
        assert set(parse_connect(text)) == {Metric(name) for name in CONNECTED}


def test_the_loop_says_how_many_it_made():
    assert parse_loop('{"made": 50000, "failed": 2, "seconds": 40.5}') == 50_000


def test_what_the_origin_did_not_see_is_lost_and_who_came_by_himself_was_not_diverted():
    counted = looped(1000, Arrivals(seen=997, alone=2, twice=0), 100, Arrivals(seen=99, alone=98, twice=0))
    assert counted == {
        Metric.LOOP_MADE: 1000,
        Metric.LOOP_LOST: 4,
        Metric.LOOP_UNDIVERTED: 2,
        Metric.LOOP_STRAYED: 1,
    }


def test_thresholds_compare_backends_with_the_explicit_proxy_and_bystanders_with_none():
    rows = [
        row(EXPLICIT, BULK=400.0, CONNECTIONS=1000.0),
        row(HOOK, BULK=390.0, CONNECTIONS=900.0, LOOP_MADE=50_000, LOOP_LOST=0, LOOP_UNDIVERTED=1, LOOP_STRAYED=0),
        row(BESIDE + DIRECT, BULK=500.0, CONNECTIONS=2000.0),
        row(BESIDE + HOOK, BULK=490.0, CONNECTIONS=2000.0),
        row(WINDIVERT, BULK=100.0),
    ]
    reached = {check.name: check for check in checks(rows)}
    assert reached["bulk, connect_hook ÷ explicit proxy"].reached == 0.975
    assert reached["bulk, connect_hook ÷ explicit proxy"].passed is True
    assert reached["new connections/s, connect_hook ÷ explicit proxy"].passed is False
    assert reached["bulk, windivert ÷ explicit proxy"].reached == 0.25
    assert reached["new connections/s, windivert ÷ explicit proxy"].passed is None
    assert reached["bulk, unselected beside connect_hook ÷ beside none"].passed is True
    assert reached["connect_hook, in a row, 50,000: lost"].passed is True
    assert reached["connect_hook, in a row, 50,000: undiverted"].passed is False
    assert reached["windivert, in a row: lost"].passed is None


def test_beside_what_windivert_reached_stands_what_its_library_alone_reaches():
    rows = [
        row(EXPLICIT, BULK=400.0),
        row(WINDIVERT, BULK=180.0, PACKETS=60_000.0),
        row(FLOOR, BULK=190.0, PACKETS=7e4),
    ]
    reached = {check.name: check for check in checks(rows)}
    assert reached["bulk, windivert ÷ explicit proxy (libebpfdivert alone: 0.47)"].reached == 0.45
    assert reached["packets per CPU second, windivert (libebpfdivert alone: 70,000)"].passed is False
    assert reached["packets per CPU second, windivert (libebpfdivert alone: 70,000)"].reached == 60_000


def test_nothing_measured_neither_passes_nor_fails():
    assert {check.passed for check in checks([])} == {None}
