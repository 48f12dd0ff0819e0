"""Each format by its name: lines for files, frames for a syslog server."""

from __future__ import annotations

import pytest
from export_events import HERE, REAL, events
from hypothesis import given

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import Format
from mitmsec.audit.export.formats import LINES, ending, header, in_file, in_syslog


def test_every_format_can_be_written() -> None:
    assert LINES.keys() == set(Format)


@given(events())
def test_in_a_file_an_event_is_one_line_in_every_format(event: Fields) -> None:
    for form in Format:
        line = in_file(form)(event, HERE)
        assert line.endswith(ending(form))
        assert line.count(b"\n") == 1
        assert b"\r" not in line.removesuffix(ending(form))


def test_only_csv_has_a_first_line() -> None:
    assert {form for form in Format if header(form)} == {Format.CSV}
    assert header(Format.CSV).startswith(b"seq,id,time,kind,")
    assert header(Format.CSV).endswith(b"\r\n")


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        (Format.SYSLOG, b'{"action"'),
        (Format.JSONL, b'{"action"'),
        (Format.CEF, b"CEF:0|"),
        (Format.OCSF, b'{"category_'),
    ],
)
def test_a_syslog_server_gets_counted_messages_that_carry_the_format(form: Format, begins: bytes) -> None:
    length, _, message = in_syslog(form)(REAL[0], HERE).partition(b" ")
    assert len(message) == int(length)
    assert message.startswith(b"<110>1 2026-11-03T10:00:00.000000Z desk-7 mitmsec gate connection [meta ")
    assert message.partition(b"] ")[2].startswith(begins)
