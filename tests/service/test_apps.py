"""Programs and their connections, gathered from events."""

from __future__ import annotations

from typing import Any

from mitmsec.service.apps import gathered

CURL = {"pid": 7, "started": "s", "exe": "/usr/bin/curl", "name": "curl", "confidence": "kernel"}


def connection(flow: str, process: dict[str, Any] = CURL, **facts: Any) -> dict[str, Any]:
    event = {
        "connection": flow, "time": f"t-{flow}", "process": process, "direction": "outbound", "action": "bypass",
        "outcome": "completed", "bytes": {"sent": 1, "received": 10},
        "remote": {"address": "192.0.2.1", "port": 443, "host": "a.test"},
    }  # fmt: skip
    return event | facts


def test_what_looks_alike_is_counted_and_added_up() -> None:
    (app,) = gathered([connection("1"), connection("2"), connection("3", action="block", outcome="blocked")])
    assert [(one.where, one.action, one.count, one.received_bytes) for one in app.destinations.values()] == [
        ("a.test:443", "bypass", 2, 20),
        ("a.test:443", "block", 1, 10),
    ]
    assert (app.connections, app.last) == (3, "t-3")


def test_what_was_not_counted_adds_nothing_and_none_of_it_is_no_number() -> None:
    udp = {"bytes": None, "protocol": "udp"}
    (app,) = gathered([connection("1"), connection("2", **udp), connection("3", action="block", **udp)])
    assert [(one.count, one.sent_bytes, one.received_bytes) for one in app.destinations.values()] == [
        (2, 1, 10),
        (1, None, None),
    ]


def test_a_connection_that_was_told_of_while_it_lived_counts_once_as_it_ended() -> None:
    (app,) = gathered([connection("1", outcome="open"), connection("2"), connection("1", outcome="cut")])
    assert [(one.outcome, one.count) for one in app.destinations.values()] == [("completed", 1), ("cut", 1)]


def test_the_same_pid_is_another_program_after_exec_or_when_it_is_less_sure() -> None:
    others = [CURL, CURL | {"exe": "/usr/bin/wget"}, CURL | {"started": "later"}, CURL | {"confidence": "inferred"}]
    assert len(gathered(connection(str(number), other) for number, other in enumerate(others))) == 4


def test_who_was_heard_of_last_stands_last() -> None:
    other = CURL | {"pid": 8}
    found = gathered([connection("1"), connection("2", other), connection("3")])
    assert [app.process["pid"] for app in found] == [8, 7]


def test_addresses_without_a_name_are_written_so_that_the_port_is_plain() -> None:
    remotes = [{"address": "192.0.2.1", "port": 22, "host": None}, {"address": "2001:db8::1", "port": 22, "host": None}]
    (app,) = gathered(connection(str(number), remote=remote) for number, remote in enumerate(remotes))
    assert [one.where for one in app.destinations.values()] == ["192.0.2.1:22", "[2001:db8::1]:22"]


def test_peers_are_told_apart_by_their_address_and_what_they_called() -> None:
    def came(flow: str, peer: str, port: int) -> dict[str, Any]:
        remote, local = {"address": peer, "port": port, "host": None}, {"address": "192.0.2.9", "port": 443}
        return connection(flow, direction="inbound", remote=remote, local=local)

    (app,) = gathered(
        [came("1", "192.0.2.1", 50_001), came("2", "192.0.2.1", 50_002), came("3", "2001:db8::1", 50_003)]
    )
    assert [(one.direction, one.where, one.count) for one in app.destinations.values()] == [
        ("inbound", "from 192.0.2.1 on port 443", 2),
        ("inbound", "from 2001:db8::1 on port 443", 1),
    ]
