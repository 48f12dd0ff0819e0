"""Syslog: a header that nobody else can write into, structured data that reads back, and one frame a message."""

from __future__ import annotations

import json
import re

import pytest
from export_events import HERE, REAL, TEXT, events
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import cef, syslog_lines
from mitmsec.audit.export.reading import Source
from mitmsec.core.printable import shown

# RFC 5424 §6
HEADER = re.compile(
    r"<(\d{1,3})>1 (-|\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d)) ([\x21-\x7e]{1,255}) ([\x21-\x7e]{1,48}) "
    r"([\x21-\x7e]{1,128}) ([\x21-\x7e]{1,32}) ((?:\[(?:[^\"\]]|\"(?:[^\"\\\]]|\\.)*\")*\])+) "
)
PARAMETER = re.compile(r' (\w+)="((?:[^"\\\]]|\\["\\\]])*)"')


def parsed(line: bytes) -> tuple[tuple[str, ...], dict[str, str], str]:
    """The header's fields, the parameters, and the message."""
    text = line.decode()
    assert "\n" not in text
    found = HEADER.match(text)
    assert found, text
    parameters = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in PARAMETER.findall(found[7])}
    return found.groups(), parameters, text[found.end() :]


@given(events(), TEXT)
def test_a_header_is_never_broken_and_the_message_is_the_event(event: Fields, name: str) -> None:
    header, parameters, message = parsed(syslog_lines.line(event, Source(host=name, version=name, log=name)))
    assert 0 <= int(header[0]) <= 191
    assert header[3] == "mitmsec"
    assert json.loads(message) == json.loads(json.dumps(event))
    assert parameters["software"] == "mitmsec"


@given(TEXT.filter(bool))
def test_parameters_read_back_with_what_is_not_printable_escaped(text: str) -> None:
    _, parameters, _ = parsed(syslog_lines.line({"kind": "connection", "rule": text}, HERE))
    assert parameters["rule"] == shown(text)


def test_a_finding_as_a_collector_sees_it() -> None:
    header, parameters, _ = parsed(syslog_lines.line(REAL[9], HERE))
    assert header[:6] == ("107", "2026-11-03T10:00:00.000000Z", "desk-7", "mitmsec", "gate", "finding")
    assert parameters | {"seq": "9", "detector": "keywords", "verdict": "alert", "sequenceId": "10"} == parameters
    assert parameters["log"] == HERE.log


def test_the_message_may_be_in_another_format() -> None:
    _, _, message = parsed(syslog_lines.line(REAL[0], HERE, content=cef.line))
    assert message.startswith("CEF:0|mitmsec|")


@pytest.mark.parametrize("time", ["yesterday", "", "2026-11-03T10:00:00.0000001Z", "2026-11-03T10:00:00Z\n"])
def test_a_time_that_is_none_is_left_out(time: str) -> None:
    header, parameters, _ = parsed(syslog_lines.line({"time": time}, Source(host="", version="")))
    assert header[1:3] == ("-", "-")
    assert "sequenceId" not in parameters


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_frames_are_taken_apart_by_their_lengths(messages: list[bytes]) -> None:
    stream, found = b"".join(map(syslog_lines.framed, messages)), []
    while stream:
        length, _, rest = stream.partition(b" ")
        found.append(rest[: int(length)])
        stream = rest[int(length) :]
    assert found == messages


def test_severities_are_syslogs() -> None:
    said = {(event["kind"], syslog_lines.severity(event)) for event in REAL}
    assert {("finding", 3), ("finding", 4), ("fault", 4), ("connection", 5), ("connection", 6)} <= said
    assert syslog_lines.severity({"kind": "finding"}) == 6
