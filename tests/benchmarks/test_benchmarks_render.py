"""Tables for the terminal and the page, and the plot."""

import xml.etree.ElementTree as ET

from benchmarks.figures import Metric, Row, checks, summarise
from benchmarks.plot import svg
from benchmarks.render import BEGIN, END, markdown, placed, text

FULL = dict.fromkeys(Metric, 9_876.543)
ROWS = [
    Row("direct", summarise([FULL])),
    Row("mitmsec decrypt", summarise([{metric: value / 100 for metric, value in FULL.items()}])),
    Row("mitmdump transparent", summarise([FULL]), ("HTTP/2: " + "long " * 60,)),
    Row("squid", summarise([FULL]), (), "preflight: wrong <issuer>"),
]


def test_the_terminal_table_fits_120_columns():
    assert max(len(line) for line in text(ROWS, checks(ROWS)).splitlines()) <= 120


def test_a_figure_stands_with_its_share_of_direct():
    (ours,) = [line for line in text(ROWS, ()).splitlines() if line.startswith("mitmsec decrypt")][:1]
    assert "99 ×0.010" in ours


def test_an_invalid_row_shows_no_figure_and_says_why():
    shown = text(ROWS, checks(ROWS))
    lines = [line for line in shown.splitlines() if line.startswith("squid")]
    assert lines
    assert all(set(line.removeprefix("squid").split()) == {"–"} for line in lines)
    assert "squid: does not count: preflight: wrong <issuer>" in shown


def test_the_page_keeps_its_prose_and_gets_new_tables_between_the_markers():
    page = f"# P\n\nprose\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    fresh = placed(page, "new")
    assert fresh == f"# P\n\nprose\n\n{BEGIN}\n\nnew\n\n{END}\n\nmore\n"
    assert placed(fresh, "new") == fresh


def test_a_page_without_markers_gets_them_at_the_end():
    assert placed("# P\n", "new") == f"# P\n\n{BEGIN}\n\nnew\n\n{END}\n"


def test_markdown_rows_have_as_many_cells_as_their_head():
    block = markdown(ROWS, checks(ROWS), "a machine")
    for table in block.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_plot_is_well_formed_and_longer_bars_mean_larger_shares():
    drawn = ET.fromstring(svg(ROWS, "a & b"))
    bars = [float(bar.attrib["width"]) for bar in drawn.iter("{http://www.w3.org/2000/svg}rect") if "x" in bar.attrib]
    direct, ours, mitmdump = bars[:3]
    assert direct == mitmdump > ours > 0


def test_the_plot_says_what_was_not_measured():
    assert svg(ROWS, "").count("not measured") == 4


def test_a_long_caption_is_broken_into_lines_that_fit():
    drawn = ET.fromstring(svg(ROWS, "a machine of many words " * 20))
    texts = [text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if "machine" in (text.text or "")]
    height = float(drawn.attrib["viewBox"].split()[3])
    assert len(texts) > 2
    assert all(len(text.text or "") <= 128 and float(text.attrib["y"]) < height for text in texts)
