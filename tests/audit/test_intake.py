"""What the recorder believes of whom."""

from __future__ import annotations

import pytest
from audit_events import CURL, connection, finding, handed, request
from msgspec.structs import replace

from mitmsec.audit.event import (
    PERMITTED,
    BytesSeen,
    CaSeen,
    CertificateSeen,
    FaultSeen,
    FindingSeen,
    Kind,
    Outcome,
    PolicySeen,
    RequestSeen,
    ReviewSeen,
    SecretsSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.audit.intake import (
    FAULTS_BURST,
    FAULTS_PER_S,
    Admitted,
    Aside,
    Awaited,
    Excess,
    Intake,
    Refused,
    Source,
    held,
)
from mitmsec.core.messages import Role, encode
from mitmsec.core.model import CLEAR_LIMIT_BYTES, Clear, Direction

GATE = Source(Role.GATE, "run-1")
WORKER = Source(Role.WORKER, "run-1", 0)
SUPERVISOR = Source(Role.SUPERVISOR)
SIGNER = Source(Role.SIGNER)

ONE_OF_EACH: tuple[Seen, ...] = (
    handed(),
    connection(),
    BytesSeen(flow="flow-1", sent=True, data=b"x"),
    request(),
    finding(),
    SecretsSeen(flow="flow-1", lines=b"x"),
    CertificateSeen(flow="flow-1", serial="1", names=("a.example",), not_after="2026-12-01T00:00:00Z"),
    PolicySeen(session="run-1", path="p", sha256="0", policy="1", rules=1, on_failure="open"),
    CaSeen(operation="created", subject="CN=x", sha256="0", not_after="2036-01-01T00:00:00Z"),
    ServiceSeen(operation="run_started", session="run-1"),
    FaultSeen(what="oops", session="run-1"),
)


def intake() -> Intake:
    """An intake that knows flow-1, handed to worker 0 of run-1."""
    made = Intake()
    assert isinstance(made.judge(GATE, handed(), 0), Aside)
    return made


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("seen", ONE_OF_EACH, ids=lambda seen: type(seen).__name__)
def test_exactly_the_permitted_kinds_of_a_role_are_taken(role: Role, seen: Seen) -> None:
    judged = intake().judge(Source(role, "run-1", 0), seen, 0)
    assert isinstance(judged, Refused) is not isinstance(seen, PERMITTED[role])


@pytest.mark.parametrize("kept_s", [0, 3600])
def test_evidence_is_taken_of_a_flow_whose_policy_keeps_it_within_bounds_and_not_into_the_event(kept_s: int) -> None:
    made = Intake()
    made.judge(GATE, handed(keep_evidence_s=kept_s), 0)
    seen = held(WORKER, finding(clear=b"hunter2" * CLEAR_LIMIT_BYTES))
    assert isinstance(seen, FindingSeen)
    assert len(seen.clear.value) == CLEAR_LIMIT_BYTES
    judged = made.judge(WORKER, seen, 0)
    assert isinstance(judged, Admitted)
    assert judged.keep_evidence_s == kept_s
    assert "clear" not in judged.fields
    assert "hunter2" not in f"{judged} {seen}"


def test_evidence_of_a_flow_whose_policy_keeps_none_is_refused_and_hidden_in_a_finding_it_is_gone() -> None:
    refused = intake().judge(WORKER, finding(clear=b"hunter2"), 0)
    assert refused == Refused("FindingSeen with evidence that its policy does not keep")
    sly = finding()
    hidden = held(WORKER, replace(sly, finding=replace(sly.finding, clear=Clear(value=b"hunter2"))))
    assert hidden == sly


def test_a_workers_request_and_finding_get_the_flows_process_and_host() -> None:
    for seen in (request(), finding()):
        judged = intake().judge(WORKER, seen, 0)
        assert isinstance(judged, Admitted)
        assert judged.fields["process"]["pid"] == CURL.pid
        assert judged.fields["host"] == "api.example.com"
        assert judged.session == "run-1"


def test_a_worker_is_awaited_on_an_unknown_flow() -> None:
    assert Intake().judge(WORKER, request("flow-9"), 0) == Awaited("flow-9")


@pytest.mark.parametrize("source", [Source(Role.WORKER, "run-1", 1), Source(Role.WORKER, "run-2", 0)])
@pytest.mark.parametrize("seen", [request(), finding(), FaultSeen(what="x", flow="flow-1")], ids=["r", "f", "fault"])
def test_a_worker_may_not_speak_about_a_flow_of_another(source: Source, seen: Seen) -> None:
    assert isinstance(intake().judge(source, seen, 0), Refused)


def test_a_worker_may_still_speak_about_a_dialogue_that_another_has_under_tls() -> None:
    made = intake()
    made.judge(GATE, handed(worker=1), 0)
    for number in (0, 1):
        assert isinstance(made.judge(Source(Role.WORKER, "run-1", number), finding(), 0), Admitted)
    assert isinstance(made.judge(Source(Role.WORKER, "run-1", 2), finding(), 0), Refused)


def test_a_worker_may_speak_about_a_flow_that_has_just_ended() -> None:
    made = intake()
    made.judge(GATE, connection(), 10)
    assert isinstance(made.judge(WORKER, request(), 11), Admitted)


def test_a_worker_can_name_neither_a_process_nor_another_session() -> None:
    judged = intake().judge(WORKER, FaultSeen(what="x", pid=1, session="run-2"), 0)
    assert isinstance(judged, Admitted)
    assert judged.session == "run-1"
    assert not {"pid", "session", "process"} & judged.fields.keys()
    piece = BytesSeen(flow="flow-1", sent=True, data=b"x", process=CURL)
    assert isinstance(intake().judge(WORKER, piece, 0), Refused)


def test_a_workers_fault_on_its_flow_names_the_flows_process() -> None:
    judged = intake().judge(WORKER, FaultSeen(what="x", flow="flow-1"), 0)
    assert isinstance(judged, Admitted)
    assert judged.fields["process"]["pid"] == CURL.pid


def test_pieces_and_secrets_of_an_own_flow_are_kept_aside() -> None:
    assert isinstance(intake().judge(WORKER, BytesSeen(flow="flow-1", sent=True, data=b"x"), 0), Aside)
    assert isinstance(intake().judge(WORKER, SecretsSeen(flow="flow-1", lines=b"x"), 0), Aside)
    assert isinstance(intake().judge(GATE, BytesSeen(flow="flow-2", sent=True, data=b"x"), 0), Aside)


def test_a_gate_may_not_take_another_sessions_flow() -> None:
    assert isinstance(intake().judge(Source(Role.GATE, "run-2"), handed(), 0), Refused)


def test_a_gate_may_not_end_another_sessions_flow() -> None:
    made = intake()
    assert isinstance(made.judge(Source(Role.GATE, "run-2"), connection(), 0), Refused)
    made.flows.expire(1e9)
    assert made.flows.find("flow-1") is not None


def test_an_open_connection_does_not_end_its_flow() -> None:
    made = intake()
    judged = made.judge(GATE, connection(outcome=Outcome.OPEN), 0)
    assert isinstance(judged, Admitted)
    assert judged.id == "flow-1.open"
    made.flows.expire(1e9)
    assert made.flows.find("flow-1") is not None
    made.judge(GATE, connection(), 0)
    made.flows.expire(1e9)
    assert made.flows.find("flow-1") is None


def test_the_signers_certificate_belongs_to_its_flows_session() -> None:
    leaf = CertificateSeen(flow="flow-1", serial="1", names=("a.example",), not_after="2026-12-01T00:00:00Z")
    judged = intake().judge(SIGNER, leaf, 0)
    assert isinstance(judged, Admitted)
    assert (judged.kind, judged.session) == (Kind.CERTIFICATE, "run-1")
    judged = Intake().judge(SIGNER, leaf, 0)
    assert isinstance(judged, Admitted)
    assert judged.session == ""


def test_the_supervisor_says_which_session_it_speaks_of() -> None:
    for seen in (ServiceSeen(operation="run_started", session="run-7"), FaultSeen(what="x", session="run-7")):
        judged = intake().judge(SUPERVISOR, seen, 0)
        assert isinstance(judged, Admitted)
        assert judged.session == "run-7"
    judged = intake().judge(SUPERVISOR, ONE_OF_EACH[8], 0)
    assert isinstance(judged, Admitted)
    assert (judged.kind, judged.session) == (Kind.CA, "")


def test_a_source_is_named_by_its_role_and_number() -> None:
    assert [str(source) for source in (GATE, WORKER, SIGNER)] == ["gate", "worker-0", "signer"]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("said", "held_to"), [(-1, 1), (0, 1), (1, 1), (2**31, 2**31), (2**63, 2**31), (-(2**63), 1)])
def test_a_count_is_one_that_can_be(role: Role, said: int, held_to: int) -> None:
    seen = held(Source(role), FaultSeen(what="capture_lost", count=said))
    assert isinstance(seen, FaultSeen)
    assert seen.count == held_to


LONG = "x" * 170_000


def test_a_workers_texts_and_numbers_are_held_and_its_flow_stays() -> None:
    worker = Source(Role.WORKER, "run-1", 0)
    fault = FaultSeen(what=LONG, detail=LONG, failed=LONG, flow="flow-1")
    wild = replace(
        request(), method=LONG, url=LONG, http_version=LONG, content_type=LONG,
        status=-7, request_bytes=2**64 - 1, response_bytes=-1,
        answered_by=LONG, seen_by=(LONG,) * 100, modified_by=(LONG,) * 100,
    )  # fmt: skip
    found = finding()
    long = replace(found, finding=replace(found.finding, detector=LONG, summary=LONG, evidence=LONG, location=LONG))
    sizes = [len(encode(held(worker, seen))) for seen in (fault, wild, long)]
    assert sizes[0] < 1500
    assert sizes[1] < 18_000 + 33 * 1100
    assert sizes[2] < 4000
    cut = held(worker, wild)
    assert isinstance(cut, RequestSeen)
    assert (cut.flow, cut.status, cut.request_bytes, cut.response_bytes) == (wild.flow, 0, 2**53, 0)
    assert cut.url.endswith("x…")


def test_what_is_within_bounds_stays_as_it_is_and_so_do_the_texts_of_others() -> None:
    worker, gate = Source(Role.WORKER, "run-1", 0), Source(Role.GATE, "run-1")
    honest: list[Seen] = [
        FaultSeen(what="w", detail="d", failed="open"),
        FaultSeen(what="w"),
        request(),
        replace(request(), status=None, content_type=None),
        finding(),
        BytesSeen(flow="flow-1", sent=True, data=b"x"),
    ]
    for seen in honest:
        assert held(worker, seen) == seen
    assert held(gate, FaultSeen(what="w", detail=LONG)) == FaultSeen(what="w", detail=LONG)


def test_a_worker_reports_so_many_faults_of_no_flow_and_the_rest_is_counted() -> None:
    judge = intake()
    burst, now_s = int(FAULTS_BURST), 100.0

    def judged(source: Source, count: int, now_s: float, flow: str | None = None) -> list[type]:
        return [type(judge.judge(source, FaultSeen(what="w", flow=flow), now_s)) for _ in range(count)]

    assert judged(WORKER, burst + 5, now_s) == [Admitted] * burst + [Excess] * 5
    assert judged(Source(Role.WORKER, "run-1", 1), 1, now_s) == [Admitted]  # another one's are its own
    assert judged(WORKER, 1, now_s, "flow-1") == [Admitted]  # of a flow that it has
    assert judged(GATE, burst * 3, now_s) == [Admitted] * burst * 3
    assert judged(WORKER, int(FAULTS_PER_S) + 1, now_s + 1) == [Admitted] * int(FAULTS_PER_S) + [Excess]
    judge.forget("run-2")
    assert judged(WORKER, 1, now_s + 1) == [Excess]
    judge.forget("run-1")
    assert judge.flows.find("flow-1") is None
    assert judged(WORKER, 1, now_s + 1) == [Admitted]


def test_what_a_worker_tells_of_a_flow_that_came_in_says_so() -> None:
    made = Intake()
    assert isinstance(made.judge(GATE, replace(handed(), direction=Direction.INBOUND), 0), Aside)
    admitted = made.judge(WORKER, request(), 0)
    assert isinstance(admitted, Admitted)
    assert admitted.fields["direction"] == "inbound"


def test_a_consoles_texts_are_held_and_keys_it_has_none() -> None:
    wild = ReviewSeen(
        operation="o" * 99, item="i" * 9999, user="u" * 99, people=("p" * 99,) * 99, keys=("k",), detail="d" * 9999
    )
    cut = held(Source(Role.CONSOLE), wild)
    assert isinstance(cut, ReviewSeen)
    assert (len(cut.operation), len(cut.item), len(cut.user), len(cut.people), len(cut.people[0])) == (
        64,
        1024,
        64,
        16,
        64,
    )
    assert (cut.keys, len(cut.detail)) == ((), 2048)
    assert held(Source(Role.SUPERVISOR), wild) == wild
