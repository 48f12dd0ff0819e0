"""The table of flows: who may speak about which, for how long, and how many."""

from __future__ import annotations

from audit_events import CURL
from msgspec.structs import replace

from mitmsec.audit.flows import Flow, Flows


def flow(number: int, session: str = "run-1") -> Flow:
    return Flow(f"flow-{number}", session, 0, CURL, "api.example.com")


def test_a_flow_is_known_from_its_hand_over_until_it_has_lingered() -> None:
    flows = Flows(linger_s=60)
    assert flows.find("flow-1") is None
    assert flows.handed(flow(1))
    assert flows.find("flow-1") == flow(1)
    flows.ended("flow-1", now_s=100)
    assert flows.find("flow-1") == flow(1)
    flows.expire(159.9)
    assert flows.find("flow-1") == flow(1)
    flows.expire(160)
    assert flows.find("flow-1") is None
    flows.ended("flow-1", now_s=200)
    assert len(flows) == 0


def test_a_flow_belongs_to_the_session_that_told_of_it_first() -> None:
    flows = Flows()
    assert flows.handed(flow(1))
    assert not flows.handed(flow(1, session="run-2"))
    assert flows.find("flow-1") == flow(1)
    assert flows.handed(flow(1))


def test_a_flow_that_is_handed_over_anew_may_be_spoken_of_by_both_its_workers() -> None:
    flows = Flows()
    for worker in (0, 0, 1):
        flows.handed(replace(flow(1), worker=worker))
    found = flows.find("flow-1")
    assert found is not None
    assert (found.worker, found.before) == (1, frozenset({0}))
    assert [found.may_be_of("run-1", worker) for worker in range(3)] == [True, True, False]
    assert not found.may_be_of("run-2", 1)


def test_a_full_table_forgets_ended_flows_first_and_then_the_oldest() -> None:
    flows = Flows(limit=3)
    for number in range(3):
        flows.handed(flow(number))
    flows.ended("flow-2", now_s=0)
    flows.handed(flow(3))
    assert flows.find("flow-2") is None
    flows.handed(flow(4))
    assert flows.find("flow-0") is None
    assert [flows.find(f"flow-{number}") for number in (1, 3, 4)] == [flow(1), flow(3), flow(4)]
    assert len(flows) == 3


def test_a_session_that_is_over_leaves_nothing() -> None:
    flows = Flows()
    for number in range(4):
        flows.handed(flow(number, session="run-1" if number < 2 else "run-2"))
    flows.ended("flow-0", now_s=0)
    flows.ended("flow-3", now_s=0)
    flows.forget("run-1")
    assert len(flows) == 2
    assert flows.find("flow-2") is not None
    assert flows.find("flow-3") is not None
