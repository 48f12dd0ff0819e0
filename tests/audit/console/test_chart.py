"""Where bars stand: within the chart, one on the other, told in words as well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.console.chart import COLUMNS_WANTED, HEIGHT, SPANS, STACK, WIDTH, chart_of, step_of
from mitmsec.audit.overview import Step

AT = datetime(2026, 11, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_bars_are_stacked_in_one_order_and_findings_are_marked() -> None:
    drawn = chart_of(
        [Step(start=AT, counts={"bypass": 1, "block": 1, "finding": 2}), Step(start=AT + HOUR, counts={})], HOUR
    )
    first, second = drawn.columns
    assert [bar.what for bar in first.bars] == ["block", "bypass"]
    assert first.bars[0].y > first.bars[1].y
    assert first.said == "1 block, 1 bypass, 2 finding"
    assert first.finding_x is not None
    assert (second.bars, second.said, second.finding_x) == ((), "nothing", None)
    assert drawn.most == 2
    assert chart_of([], HOUR).columns == ()


def test_a_step_is_as_long_as_makes_a_readable_chart() -> None:
    assert step_of(AT, AT + HOUR) == timedelta(minutes=1)
    assert step_of(AT, AT + timedelta(days=3650)) == SPANS[-1]
    for days in (1, 7, 30, 365):
        assert timedelta(days=days) / step_of(AT, AT + timedelta(days=days)) <= COLUMNS_WANTED


@given(st.lists(st.dictionaries(st.sampled_from([*STACK, "finding"]), st.integers(0, 10**9)), max_size=60))
def test_nothing_stands_outside_of_the_chart(rows: list[dict[str, int]]) -> None:
    drawn = chart_of([Step(start=AT + index * HOUR, counts=counts) for index, counts in enumerate(rows)], HOUR)
    for column in drawn.columns:
        for bar in column.bars:
            assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.1
            assert -len(STACK) * 1.6 <= bar.y <= bar.y + bar.height <= HEIGHT
