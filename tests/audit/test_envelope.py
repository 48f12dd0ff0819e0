"""Envelopes: the field names people rely on, canonical bytes, bounded size."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from audit_events import CURL, connection, draft, finding, handed, request
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.audit.envelope import (
    ENVELOPE_LIMIT_BYTES,
    Draft,
    canonical,
    event_id,
    fields_of,
    host_of,
    hundredths,
    sealed,
)
from mitmsec.audit.event import (
    CaSeen,
    CertificateSeen,
    FaultSeen,
    Kind,
    NamedBy,
    Outcome,
    PolicySeen,
    ReviewSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.core.model import Direction, Fact

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
KEYS = st.text(st.sampled_from("abcdefgh_"), min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def event_of(seen: Seen, seq: int = 7) -> dict[str, Any]:
    fields, envelope = sealed(draft(seen), seq)
    parsed: dict[str, Any] = json.loads(envelope)
    assert parsed == json.loads(json.dumps(fields))
    assert parsed["seq"] == seq
    return parsed


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_canonical_json_is_the_one_spelling_that_sorted_compact_json_has(value: dict[str, Any]) -> None:
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert canonical(value) == expected
    assert json.loads(canonical(value)) == value


@given(st.floats(0, 1))
def test_a_confidence_is_spelled_the_same_by_every_writer(value: float) -> None:
    spelled = hundredths(value)
    assert math.isclose(spelled, value, abs_tol=0.00501)
    assert canonical({"c": spelled}) == f'{{"c":{json.dumps(spelled)}}}'.encode()
    assert not isinstance(spelled, float) or 0.01 <= spelled <= 0.99


@pytest.mark.parametrize(("value", "expected"), [(math.nan, 0), (-1.0, 0), (7.0, 1), (math.inf, 1), (0.999, 1)])
def test_a_confidence_outside_its_range_is_held_within(value: float, expected: int) -> None:
    assert repr(hundredths(value)) == repr(expected)


def test_a_connection_has_the_promised_fields() -> None:
    event = event_of(connection())
    assert event["id"] == event["connection"] == "flow-1"
    assert event["kind"] == "connection"
    assert event["producer"] == "gate"
    assert event["session"] == "run-1"
    assert event["process"]["exe"] == "/usr/bin/curl"
    parent = {"pid": 4000, "exe": "/usr/bin/bash", "claimed_exe": None, "parent": None}
    assert event["process"]["parent"] == parent
    assert event["process"]["confidence"] == "kernel"
    assert event["direction"] == "outbound"
    assert event["local"] == {"address": "127.0.0.1", "port": 40000}
    assert event["remote"] == {"address": "192.0.2.7", "port": 443, "host": "api.example.com"}
    assert event["bytes"] == {"sent": 120, "received": 4500}
    assert event["tls"]["client"]["sni"] == "api.example.com"
    assert event["tls"]["server"] is None
    assert (event["action"], event["rule"], event["reason"]) == ("decrypt", "defaults", "no rule matched")
    assert (event["duration_ms"], event["outcome"], event["protocol"]) == (31, "completed", "tls")
    assert "error" not in event
    assert event_of(connection(error="refused"))["error"] == "refused"


def test_what_was_not_counted_is_absent_and_datagrams_stand_apart() -> None:
    udp = replace(connection(), bytes_sent=None, bytes_received=None, datagrams_sent=3, datagrams_received=0)
    event = event_of(udp)
    assert "bytes" not in event
    assert event["datagrams"] == {"sent": 3, "received": 0}
    assert "datagrams" not in event_of(connection())
    assert "datagrams" not in event_of(replace(udp, datagrams_sent=None, datagrams_received=None))


def test_a_name_that_the_flow_did_not_show_itself_says_where_it_is_from() -> None:
    assert event_of(replace(connection(), named_by=NamedBy.DNS))["remote"]["named_by"] == "dns"
    assert "named_by" not in event_of(connection())["remote"]


def test_a_connection_that_went_through_a_proxy_says_by_which_kind_of_tunnel() -> None:
    assert event_of(replace(connection(), through="socks"))["through"] == "socks"
    assert "through" not in event_of(connection())


def test_who_opened_what_lies_under_quarantine_is_a_review() -> None:
    people, keys = ("alice", "bob"), ("k", "l")
    seen = ReviewSeen(operation="quarantine_released", item="f-1", user="joe", people=people, keys=keys)
    fields = {"operation": "quarantine_released", "item": "f-1", "user": "joe", "people": people, "keys": keys}
    assert fields_of(seen) == (Kind.REVIEW, fields)


def test_what_a_reviewer_did_in_the_console_says_what_there_is_to_say() -> None:
    seen = ReviewSeen(operation="signed_in", item="rosa", user="rosa", people=(), keys=())
    assert fields_of(seen) == (Kind.REVIEW, {"operation": "signed_in", "item": "rosa", "user": "rosa"})
    assert fields_of(replace(seen, detail="from ::1"))[1]["detail"] == "from ::1"


def test_a_connection_that_still_lives_has_an_id_of_its_own() -> None:
    still = connection(outcome=Outcome.OPEN)
    assert event_id(still) == "flow-1.open"
    assert event_of(still)["connection"] == "flow-1"


def test_a_request_and_a_finding_carry_their_flows_process() -> None:
    event = event_of(request())
    assert event["process"]["pid"] == CURL.pid
    assert event["connection"] == "flow-1"
    assert (event["method"], event["url"], event["status"]) == ("GET", "https://api.example.com/v1/items", 200)
    assert (event["http_version"], event["request_bytes"], event["response_bytes"]) == ("HTTP/2", 90, 4000)
    assert event["content_type"] == "application/json"
    assert "seen_by" not in event
    assert "item" not in event_of(finding())
    assert event_of(replace(finding(), item="flow-1-0123abcd"))["item"] == "flow-1-0123abcd"
    assert event_of(replace(request(), seen_by=("a.py",), modified_by=("a.py",)))["modified_by"] == ["a.py"]
    event = event_of(finding())
    assert event["process"]["pid"] == CURL.pid
    assert event["connection"] == "flow-1"
    assert (event["detector"], event["severity"], event["verdict"]) == ("keywords", "high", "alert")
    assert (event["confidence"], event["evidence"], event["location"]) == (0.9, "pro…ion", "request.body+12")


def test_a_connection_names_the_policy_that_decided_it_where_that_is_known() -> None:
    assert "policy" not in event_of(connection())
    assert event_of(replace(connection(), policy="ab" * 32))["policy"] == "ab" * 32


def test_the_other_kinds_have_their_fields() -> None:
    leaf = CertificateSeen(flow="f", serial="0a", names=("a.example",), not_after="2026-12-01T00:00:00Z")
    event = event_of(leaf)
    assert (event["connection"], event["names"], event["serial"]) == ("f", ["a.example"], "0a")
    assert "flaw" not in event
    policy = PolicySeen(session="run-1", path="p.toml", sha256="00", policy="11", rules=3, on_failure="open")
    assert (event_of(policy)["rules"], event_of(policy)["policy"]) == (3, "11")
    assert "certificates" not in event_of(policy)
    assert event_of(replace(policy, certificates=("ab",)))["certificates"] == ["ab"]
    ca = CaSeen(operation="created", subject="CN=x", sha256="00", not_after="2036-01-01T00:00:00Z")
    assert event_of(ca)["operation"] == "created"
    event = event_of(ServiceSeen(operation="run_started", command=("curl", "x")))
    assert event["command"] == ["curl", "x"]
    assert "status" not in event
    event = event_of(FaultSeen(what="worker_died", failed="open", flow="f", pid=3))
    assert (event["what"], event["failed"], event["connection"], event["pid"]) == ("worker_died", "open", "f", 3)
    kind, fields = fields_of(FaultSeen(what="stranger"))
    assert (kind, fields) == (Kind.FAULT, {"what": "stranger", "detail": "", "count": 1})


def test_what_only_windows_knows_is_told_where_it_is_known() -> None:
    assert not {"services", "package", "signer", "uid", "unread"} & set(event_of(connection())["process"])
    assert event_of(replace(connection(), process=replace(CURL, uid=0)))["process"]["uid"] == 0
    host = replace(CURL, services=("Dnscache", "lmhosts"), signer="CN=A", unread=(Fact.PACKAGE,))
    for seen in (replace(connection(), process=host), finding()):
        kind, fields = fields_of(seen, owner=host)
        told = json.loads(canonical(fields))["process"]
        assert (told["services"], told["signer"], told["unread"]) == (["Dnscache", "lmhosts"], "CN=A", ["package"]), (
            kind
        )
        assert "package" not in told


def test_an_event_of_no_session_says_none() -> None:
    stamped = draft(connection())
    fields, _ = sealed(Draft(stamped.kind, stamped.id, stamped.time, "gate", "", stamped.fields), 0)
    assert "session" not in fields


def test_what_is_no_event_by_itself_is_refused() -> None:
    with pytest.raises(TypeError):
        fields_of(handed())


@given(st.integers(0, 200_000), st.sampled_from(["a", "é", "\x00", "😀", '"']))
def test_an_envelope_is_bounded_whatever_a_peer_sent(length: int, character: str) -> None:
    fields, envelope = sealed(draft(request(url=character * length)), 3)
    assert len(envelope) <= ENVELOPE_LIMIT_BYTES
    assert json.loads(envelope) == fields
    if fields.get("clipped"):
        assert fields["url"].endswith("…")
    else:
        assert fields["url"] == character * length


def test_long_lists_are_clipped_too() -> None:
    names = tuple(f"{index}.{'x' * 60}.example" for index in range(5000))
    leaf = CertificateSeen(flow="f", serial="1", names=names, not_after="2026-12-01T00:00:00Z")
    fields, envelope = sealed(draft(leaf), 0)
    assert len(envelope) <= ENVELOPE_LIMIT_BYTES
    assert fields["clipped"] is True
    assert 1 <= len(fields["names"]) < 5000


def test_an_event_is_about_a_name_or_else_an_address() -> None:
    leaf = CertificateSeen(
        flow="flow-1", serial="0a", names=("a.example", "b.example"), not_after="2027-01-01T00:00:00Z"
    )
    assert host_of(sealed(draft(connection()), 0)[0]) == "api.example.com"
    assert host_of(sealed(draft(connection(host=None)), 0)[0]) == "192.0.2.7"
    assert host_of(sealed(draft(leaf), 0)[0]) == "a.example"
    assert host_of({"kind": "fault", "remote": "no mapping", "names": 5}) is None


def test_what_was_seen_on_a_flow_that_came_in_says_so() -> None:
    for seen in (request(), finding()):
        assert "direction" not in fields_of(seen, CURL, "a.example")[1]
        assert fields_of(seen, CURL, "a.example", Direction.INBOUND)[1]["direction"] == "inbound"
