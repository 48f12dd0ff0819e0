"""What is not there, or of another type, is None, whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest
from export_events import ANYTHING, LATER, REAL, events
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import reading

TIME = "2026-11-03T10:00:00.250000Z"


@given(events(), st.lists(st.sampled_from(["process", "exe", "remote", "address", "names", "tls"]), max_size=3))
def test_readers_return_their_type_or_nothing(event: Fields, path: list[str]) -> None:
    assert isinstance(reading.text(event, *path), str | None)
    assert isinstance(reading.number(event, *path), int | None)
    assert all(isinstance(one, str) for one in reading.texts(event, *path))
    assert reading.summary(event)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (2**53 - 1, 2**53 - 1), (2**53, None), (-1, None), (True, None), (1.0, None), ("1", None), (None, None)],
)
def test_numbers(value: Any, expected: int | None) -> None:
    assert reading.number({"n": value}, "n") == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [("192.0.2.7", "192.0.2.7"), ("2001:DB8::1", "2001:db8::1"), ("fe80::1%eth0", "fe80::1"), ("x", None), (7, None)],
)
def test_addresses(address: Any, expected: str | None) -> None:
    assert reading.address({"remote": {"address": address}}, "remote") == expected


def test_ports() -> None:
    assert reading.port({"local": {"port": 65535}}, "local") == 65535
    assert reading.port({"local": {"port": 65536}}, "local") is None


@given(ANYTHING, ANYTHING)
def test_times_are_times_or_none(time: Any, lasted: Any) -> None:
    event = {"time": time, "duration_ms": lasted}
    assert reading.time_ms(event, "time") >= 0
    assert (reading.began(event) is None) or reading.instant(event, "time") is not None
    assert (reading.stamp(event, "time") is None) == (reading.instant(event, "time") is None)


def test_a_connection_began_before_it_ended() -> None:
    assert reading.time_ms({"time": TIME}, "time") == 1793700000250
    assert reading.written(reading.began({"time": TIME, "duration_ms": 250})) == "2026-11-03T10:00:00.000000Z"
    assert reading.began({"time": "0001-01-01T00:00:00Z", "duration_ms": 1}) is None
    assert reading.began({"time": TIME}) is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"datagrams": {}}, "udp"), ({"protocol": "quic"}, "udp"), ({"bytes": {}}, "tcp"),
        ({"tls": {"client": 1}}, "tcp"), ({"protocol": "dns"}, None),
    ],
)  # fmt: skip
def test_transports_are_told_where_they_are_known(event: Fields, expected: str | None) -> None:
    assert reading.transport(event) == expected


@pytest.mark.parametrize("url", [None, "", "x", "https://[::1", "http://h:99999/", "//h/p"])
def test_what_is_no_url_has_no_parts(url: str | None) -> None:
    assert reading.split_url(url) is None


def test_sentences_for_people() -> None:
    assert reading.summary(LATER) == "of a later version"
    assert reading.summary({}) == "event"
    said = {reading.summary(event) for event in REAL}
    assert {
        "decrypt tls api.example.com:443 completed", "capture tls 192.0.2.7:443 open", "PROPFIND not a url",
        "malware Eicar quarantine", "issued for a.example b.example", "policy loaded: /etc/p.toml",
        "stranger 127.0.0.1:9", "ca created CN=root", "review quarantine_released", "service switched_off by hand",
    } <= said  # fmt: skip
    assert reading.summary({"kind": "connection", "remote": {"host": "h"}}) == "h"


def test_what_says_nothing_is_left_out_at_any_depth() -> None:
    assert reading.pruned({"a": None, "b": {"c": []}, "d": [{"e": ""}], "f": 0}) == {"d": [{}], "f": 0}
