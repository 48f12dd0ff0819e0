"""CSV: the same columns for every event, and nothing in a cell that a spreadsheet would run or a terminal obey."""

from __future__ import annotations

import csv
import io

import pytest
from export_events import HERE, HOSTILE, REAL, events
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import csv_rows

COLUMNS = list(csv_rows.COLUMNS)


def read_back(*lines: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(b"\r\n".join(lines).decode(), newline=""), strict=True))


@given(st.lists(events(), max_size=4))
def test_there_are_as_many_rows_as_events_and_every_row_has_every_column(some: list[Fields]) -> None:
    rows = read_back(csv_rows.header(), *(csv_rows.line(event, HERE) for event in some))
    assert rows[0] == COLUMNS
    assert [len(row) for row in rows] == [len(COLUMNS)] * (len(some) + 1)
    for row in rows[1:]:
        for cell in row:
            assert cell.isprintable()
            assert cell.lstrip(" ")[:1] not in ("=", "+", "@", "＝") or cell[:1] == "'"


@given(HOSTILE | st.text(st.characters(exclude_categories=["Cs"])))
def test_what_could_be_a_formula_has_an_apostrophe_before_it(text: str) -> None:
    cell = csv_rows.cell(text)
    is_formula = text.lstrip(" ")[:1] in tuple("=+-@\t\r\n＝＋－＠")
    assert cell.startswith("'") == (is_formula or text.startswith("'"))
    assert "\t" not in cell
    assert "\r" not in cell


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""), (True, "true"), (False, "false"), (-5, "-5"), (0.9, "0.9"), ("=1", "'=1"), ("\t=1", r"'\t=1"),
        ("a\u202eb", r"a\u202eb"), (["a", "b"], "a b"), (["=a"], "'=a"), ({"a": 1}, '{"a":1}'), ([1], "[1]"), ([], ""),
    ],
)  # fmt: skip
def test_cells(value: object, expected: str) -> None:
    assert csv_rows.cell(value) == expected


def test_a_row_has_what_an_auditor_looks_for() -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in read_back(*(csv_rows.line(one, HERE) for one in REAL))]
    first = rows[1]
    assert (first["seq"], first["kind"], first["app"], first["host"]) == (
        "1", "connection", "/usr/bin/curl", "api.example.com"
    )  # fmt: skip
    assert (first["bytes_sent"], first["remote_address"], first["sni"]) == ("120", "192.0.2.7", "a.example")
    assert {row["user"] for row in rows if row["kind"] == "ca"} == {"", "root"}
    assert next(row["names"] for row in rows if row["kind"] == "certificate") == "a.example b.example"
