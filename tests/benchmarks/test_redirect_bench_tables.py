"""Tables of the redirect benchmark."""

from benchmarks.figures import Metric, Row, summarise
from benchmarks.redirect.figures import BESIDE, DIRECT, HOOK, WINDIVERT, checks
from benchmarks.redirect.tables import tables
from benchmarks.render import markdown, text

FULL = dict.fromkeys(Metric, 9_876.543)
QUIET = {metric: 100.0 for metric in Metric if not metric.startswith("loop")}
ROWS = [
    Row(DIRECT, summarise([QUIET])),
    Row(HOOK, summarise([FULL])),
    Row(WINDIVERT, {}, (), "`mitmsec run` offers no such backend"),
    Row(BESIDE + DIRECT, summarise([QUIET])),
    Row(BESIDE + HOOK, summarise([{metric: value / 2 for metric, value in QUIET.items()}])),
    Row(BESIDE + WINDIVERT, {}),
]


def test_who_is_led_and_who_is_not_stand_in_tables_of_their_own():
    led, beside, packets, in_a_row, spread = tables(ROWS)
    assert [line[0] for line in led.body] == [DIRECT, HOOK, WINDIVERT]
    assert [line[0] for line in beside.body] == [BESIDE + DIRECT, BESIDE + HOOK]
    assert [line[0] for line in packets.body] == [DIRECT, HOOK]
    assert [line[0] for line in in_a_row.body] == [HOOK]
    assert [line[0] for line in spread.body] == [DIRECT, HOOK, BESIDE + DIRECT, BESIDE + HOOK]


def test_a_bystander_is_compared_with_one_beside_no_backend():
    _, beside, *_ = tables(ROWS)
    assert beside.body[1][1] == "50 ×0.50"


def test_a_backend_that_is_absent_says_why():
    shown = text(ROWS, checks(ROWS), tables)
    assert "mitmsec windivert: does not count: `mitmsec run` offers no such backend" in shown
    assert max(len(line) for line in shown.splitlines()) <= 120
    assert "**Connections in a row, as the origin saw them**" in markdown(ROWS, checks(ROWS), "a machine", tables)
