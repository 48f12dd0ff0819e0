"""CEF: what a parser that follows the format reads is what was meant, whatever strangers wrote."""

from __future__ import annotations

import re

import pytest
from export_events import HERE, LATER, REAL, TEXT, events
from hypothesis import given

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import cef
from mitmsec.core.printable import shown

KEY = re.compile(r"(?:^| )([A-Za-z0-9]+)=")


def parsed(line: bytes) -> tuple[list[str], dict[str, str]]:
    """Header and extension, as a collector takes them apart."""
    text = line.decode()
    assert len(text.splitlines()) == 1
    assert text.startswith("CEF:0|")
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", text) if "\\" not in text else _split(text)
    header, extension = parts[1:7], "|".join(parts[7:])
    fields, keys = {}, list(re.finditer(r"(?:^| )([A-Za-z0-9]+)(?<!\\)=", extension))
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        value = extension[key.end() : following.start() if following else None]
        assert not re.search(r"(?<!\\)(?:\\\\)*=", value)
        fields[key[1]] = _unescaped(value)
    return [_unescaped(part) for part in header], fields


def _split(text: str) -> list[str]:
    parts, at = [""], 0
    while at < len(text):
        if text[at] == "|" and len(parts) < 8:
            parts.append("")
        elif text[at] == "\\":
            parts[-1] += text[at : at + 2]
            at += 1
        else:
            parts[-1] += text[at]
        at += 1
    return parts


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)


@given(events())
def test_seven_parts_of_a_header_and_pairs_behind_them(event: Fields) -> None:
    header, fields = parsed(cef.line(event, HERE))
    assert header[:3] == ["mitmsec", "mitmsec", "1.2"]
    assert 0 <= int(header[5]) <= 10
    assert fields["dvchost"] == "desk-7"
    assert {key.removesuffix("Label") for key in fields if key.endswith("Label")} <= fields.keys()


@given(TEXT)
def test_a_value_reads_back_with_what_is_not_printable_escaped(text: str) -> None:
    _, fields = parsed(cef.line({"kind": "fault", "what": "w", "detail": text, "id": text}, HERE))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert fields.get("externalId", "") == "\n".join(map(shown, lines))


def test_a_connection_and_its_keys() -> None:
    header, fields = parsed(cef.line(REAL[1], HERE))
    assert header[3:] == ["connection:decrypt", "decrypt tls api.example.com:443 completed", "1"]
    assert fields | {
        "src": "127.0.0.1", "spt": "40000", "dst": "192.0.2.7", "dpt": "443", "dhost": "api.example.com", "in": "120",
        "out": "4500", "rt": "1793700000000", "act": "decrypt", "deviceDirection": "1", "cs1": "defaults",
        "cs1Label": "rule", "cn1": "1", "sproc": "/usr/bin/curl", "suid": "1000", "proto": "TCP",
    } == fields  # fmt: skip


def test_of_what_came_in_source_and_destination_change_places() -> None:
    _, fields = parsed(cef.line(next(event for event in REAL if event.get("direction") == "inbound"), HERE))
    assert (fields["c6a2"], fields["c6a3"], fields["in"], fields["out"]) == ("::2", "::1", "4500", "120")
    assert fields["deviceDirection"] == "0"
    assert "dhost" not in fields


def test_a_request_has_its_url_and_status() -> None:
    _, fields = parsed(cef.line(REAL[6], HERE))
    assert (fields["request"], fields["requestMethod"], fields["cn2"], fields["in"]) == (
        "https://api.example.com/v1/items", "GET", "200", "90"
    )  # fmt: skip


def test_severities() -> None:
    said = {(event["kind"], cef.severity(event)) for event in REAL}
    assert {("finding", 9), ("finding", 7), ("fault", 6), ("connection", 4), ("connection", 1), ("ca", 1)} <= said
    assert cef.severity({"kind": "finding", "severity": "who knows"}) == 6
    assert cef.severity(LATER) == 1


@pytest.mark.parametrize(("text", "expected"), [("a|b\\c=d", r"a\|b\\c=d"), ("a\nb", "a b"), ("\n", "-")])
def test_a_header_is_one_line(text: str, expected: str) -> None:
    line = cef.line({"kind": text}, HERE).decode()
    assert line.startswith(f"CEF:0|mitmsec|mitmsec|1.2|{expected}|")
