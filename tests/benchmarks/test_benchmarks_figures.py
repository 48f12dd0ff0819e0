"""Medians, ratios and thresholds."""

from benchmarks.figures import Check, Metric, Row, added, checks, ratio, rotated, summarise


def row(variant: str, invalid: str | None = None, **medians: float) -> Row:
    return Row(variant, summarise([{Metric[name]: value for name, value in medians.items()}]), (), invalid)


def test_summary_is_the_median_with_its_spread_over_the_rounds_that_have_the_figure():
    summaries = summarise([{Metric.BULK: 3.0, Metric.P50: 7.0}, {Metric.BULK: 1.0}, {Metric.BULK: 10.0}])
    bulk = summaries[Metric.BULK]
    assert (bulk.median, bulk.least, bulk.greatest, bulk.rounds) == (3.0, 1.0, 10.0, 3)
    assert summaries[Metric.P50].rounds == 1


def test_ratio_and_difference_are_absent_where_a_figure_is():
    direct, other = row("direct", BULK=200.0, SINGLE=2.0), row("other", BULK=50.0)
    assert ratio(other, direct, Metric.BULK) == 0.25
    assert ratio(other, direct, Metric.SINGLE) is None
    assert added(direct, other, Metric.BULK) == 150.0
    assert added(other, None, Metric.BULK) is None
    assert ratio(direct, row("zero", BULK=0.0), Metric.BULK) is None


def test_a_row_that_failed_its_preflight_has_no_figures():
    assert row("squid", invalid="origin's certificate", BULK=50.0).median(Metric.BULK) is None


def test_thresholds_compare_with_direct_and_with_mitmdump():
    rows = [
        row("direct", SINGLE=2.0, BULK=300.0),
        row("mitmsec decrypt", REQUESTS=1000.0, CONNECTIONS=100.0, SINGLE=3.0, RSS_GROWTH=40.0),
        row("mitmsec bypass", BULK=270.0, CPU_GB=0.3),
        row("mitmdump transparent", REQUESTS=400.0, CONNECTIONS=80.0),
    ]
    reached = checks(rows)
    assert [check.reached for check in reached] == [2.5, 1.25, 1.0, 0.9, 0.3, 40.0]
    assert [check.passed for check in reached] == [True, False, True, True, True, False]


def test_what_was_not_measured_neither_passes_nor_fails():
    assert [check.passed for check in checks([])] == [None] * 6
    assert Check("x", 1.0, True, 1.0).passed is True


def test_each_variant_comes_first_in_some_round():
    orders = [rotated("abc", number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rotated([], 3) == []
