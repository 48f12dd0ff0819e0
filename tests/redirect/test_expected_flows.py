"""What the gate is told of a connection before it comes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from msgspec import structs
from msgspec.structs import replace

from mitmsec.core.model import Confidence, Endpoint, ParentProcess, Process
from mitmsec_redirect import expected_flows
from mitmsec_redirect.expected_flows import ExpectedFlow, ExpectedFlows, announce, channel
from mitmsec_redirect.records import Origin

REMOTE, GATE = Endpoint(address="2001:db8::10", port=443), Endpoint(address="192.0.2.1", port=8085)


def flow(port: int) -> ExpectedFlow:
    parent = ParentProcess(pid=1, exe="/sbin/init")
    process = Process(pid=7, exe="/usr/bin/curl", sha256="ab", parent=parent, confidence=Confidence.KERNEL)
    origin = Origin(remote=REMOTE, pid=7, uid=0, comm="curl", connected_ns=5, bound=None, source="192.0.2.1")
    return ExpectedFlow(client=Endpoint(address="192.0.2.9", port=port), gate=GATE, origin=origin, process=process)


@dataclass
class Pair:
    teller: socket.socket
    flows: ExpectedFlows


@pytest.fixture
def pair() -> Iterator[Pair]:
    teller, told = channel()
    flows = ExpectedFlows(told)
    yield Pair(teller, flows)
    teller.close()
    flows.close()


def test_what_was_told_is_found_as_it_was_and_once(pair: Pair) -> None:
    announce(pair.teller, flow(40001))
    announce(pair.teller, flow(40002))
    assert pair.flows.find(flow(40001).client, GATE, 1.0) == flow(40001)
    assert pair.flows.find(flow(40001).client, GATE, 1.0) is None
    assert pair.flows.find(flow(40002).client, GATE, 1.0) == flow(40002)
    assert len(pair.flows) == 0


def test_a_stranger_is_nobodys_flow(pair: Pair) -> None:
    announce(pair.teller, flow(40001))
    assert pair.flows.find(Endpoint(address="192.0.2.9", port=1), GATE, 1.0) is None
    assert pair.flows.find(flow(40001).client, Endpoint(address="192.0.2.2", port=8085), 1.0) is None


def test_who_was_told_twice_came_the_second_time(pair: Pair) -> None:
    announce(pair.teller, flow(40001))
    later = flow(40001)
    announce(pair.teller, later)
    assert pair.flows.find(later.client, GATE, 1.0) == later
    assert len(pair.flows) == 0


def test_what_never_comes_is_forgotten_by_age_and_by_number(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(pair.teller, flow(40001))
    pair.flows.hear(0.0)
    announce(pair.teller, flow(40002))
    pair.flows.hear(20.0)
    assert len(pair.flows) == 2
    pair.flows.hear(expected_flows.KEPT_S + 1)
    assert len(pair.flows) == 1
    monkeypatch.setattr(expected_flows, "KEPT_LIMIT", 3)
    for port in range(50001, 50006):
        announce(pair.teller, flow(port))
    assert pair.flows.find(flow(50002).client, GATE, 32.0) is None
    assert pair.flows.find(flow(50005).client, GATE, 32.0) == flow(50005)


def test_a_gate_that_does_not_read_is_an_error_at_once_and_so_is_one_that_has_gone(pair: Pair) -> None:
    def announce_all() -> None:
        for port in range(1024, 65536):
            announce(pair.teller, flow(port))

    with pytest.raises(BlockingIOError):
        announce_all()
    pair.flows.close()
    with pytest.raises(ConnectionError):
        announce(pair.teller, flow(1))


def test_a_teller_that_has_gone_leaves_what_it_told(pair: Pair) -> None:
    announce(pair.teller, flow(40001))
    pair.teller.close()
    assert pair.flows.find(flow(40001).client, GATE, 1.0) == flow(40001)
    assert pair.flows.find(flow(40002).client, GATE, 1.0) is None


def test_paths_that_were_made_to_be_too_long_cost_the_ancestors_and_no_connection(pair: Pair) -> None:
    parent = ParentProcess(pid=1, exe="x" * 70_000)
    long = replace(flow(40001), process=structs.replace(flow(40001).process, parent=parent))
    announce(pair.teller, long)
    found = pair.flows.find(long.client, GATE, 1.0)
    assert found is not None
    assert (found.process.parent, found.process.exe) == (None, "/usr/bin/curl")
    longer = replace(long, process=structs.replace(long.process, exe="x" * 70_000))
    with pytest.raises(OSError, match="too long"):
        announce(pair.teller, longer)
    assert pair.flows.find(longer.client, GATE, 1.0) is None
