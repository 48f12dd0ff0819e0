"""A recorded decision made once more is the one that the gate made, or what is on record says why it is not."""

from __future__ import annotations

from typing import Any

import policies
from audit_events import CURL, connection
from gate_stage import CLIENT, FLAWED, GATE, HALF, HTTP, SSH, Colleagues
from hellos import alpn, hello, server_name
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.audit.decided_again import UNEXPLAINED, Again, again
from mitmsec.audit.envelope import Draft, Fields, event_id, fields_of, sealed
from mitmsec.audit.event import ConnectionSeen, NamedBy, Outcome
from mitmsec.audit.past_flows import past_connection
from mitmsec.core.messages import TlsClientFacts, TlsFacts
from mitmsec.core.model import Action, Confidence, Endpoint, OnFailure, Process, UnprovenName
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.gate import signals as s
from mitmsec.gate.flow import Flow
from mitmsec.gate.names import Names
from mitmsec.gate.terms import Terms

SAID = [hello(server_name(name.encode()), alpn(b"h2")) for name in policies.NAMES]
SAID += [HTTP, b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", b"CONNECT a.example:443 HTTP/1.1\r\n\r\n"]
SAID += [SSH, FLAWED, HALF, b"\x00\x01\x02", b""]


def recorded(seen: ConnectionSeen, producer: str = "gate") -> Fields:
    kind, fields = fields_of(seen)
    return sealed(Draft(kind, event_id(seen), "2026-11-03T10:00:01.000000Z", producer, "run-1", fields), 0)[0]


def answered(policy: Policy, seen: ConnectionSeen, producer: str = "gate") -> Again:
    return again(policy, past_connection(recorded(seen, producer)))


def played(policy: Policy, process: Process, remote: Endpoint, data: bytes, resolved: tuple[str, ...] | None) -> Fields:
    """What the gate records of such a flow; nobody serves it to its end."""
    flow = Flow("f", Terms(on_failure=policy.on_failure, policy=policy.fingerprint), policy, Names(), Colleagues())
    told: list[Any] = []

    def tell(event: s.AnyEvent) -> None:
        commands = list(flow.told(event, 1.0))
        told.extend(commands)
        for command in commands:
            if isinstance(command, s.Dial):
                tell(s.Dialled(command.endpoints[0]))

    origin = s.Origin(remote=remote, pid=process.pid, uid=0, comm="")
    tell(s.Accepted(CLIENT, GATE, origin))
    flow.about.resolved = resolved
    tell(s.OwnerKnown(process))
    tell(s.FirstBytes(data, eof=not data))
    tell(s.Cut("the test is over", Outcome.CUT))
    seen = [one.seen for one in told if isinstance(one, s.Record) and isinstance(one.seen, ConnectionSeen)]
    return recorded(seen[-1])


@given(
    policies.policies,
    st.sampled_from(policies.PROCESSES),
    st.sampled_from([address for address in policies.ADDRESSES if address]),
    st.sampled_from(policies.PORTS),
    st.sampled_from(SAID),
    st.sampled_from([None, (), ("a.example",)]),
    st.sampled_from(UnprovenName),
    st.sampled_from(OnFailure),
)
def test_whatever_the_gate_decides_is_decided_again_of_what_it_recorded(
    policy: Policy,
    process: Process,
    address: str,
    port: int,
    data: bytes,
    resolved: tuple[str, ...] | None,
    unproven: UnprovenName,
    on_failure: OnFailure,
) -> None:
    policy = replace(policy, unproven_name=unproven, on_failure=on_failure)
    event = played(policy, process, Endpoint.of(address, port), data, resolved)
    found = again(policy, past_connection(event))
    is_proof_unknown = data in (HTTP, SAID[6]) and unproven is not UnprovenName.ALLOW
    assert found.explained or is_proof_unknown, (event, found)
    if process is not policies.UNKNOWN and data is not SAID[7] and not is_proof_unknown:
        assert found.same, (event, found)


BYPASS = Policy(action=Action.BYPASS, rules=(Rule(name="api", action=Action.DECRYPT, host=("api.example.com",)),))
BY_API = replace(connection(), action=Action.DECRYPT, rule="api", reason='rule "api" takes connections to api')


def test_the_same_decision_has_nothing_beside_it() -> None:
    found = answered(BYPASS, BY_API)
    assert (found.same, found.explained, found.notes) == (True, True, ())
    assert [(tried.rule, tried.decided) for tried in found.story.tried] == [("api", True)]


def test_what_else_had_a_word_then_is_told_from_the_record() -> None:
    off = "mitmsec is switched off; else decrypted: no rule matched"
    for seen, note in (
        (replace(BY_API, action=Action.BYPASS, reason=off), f"something else had the last word: {off}"),
        (replace(BY_API, action=Action.BYPASS, outcome=Outcome.FAULT), "on_failure chose bypass"),
        (replace(BY_API, action=Action.BLOCK, rule="on_failure", reason="no owner"), "on_failure did: no owner"),
    ):
        found = answered(BYPASS, replace(seen, reason=seen.reason))
        assert (found.same, found.explained) == (False, True)
        assert note in found.notes[0]
    mail = replace(BY_API, protocol="smtp", reason="rule")
    assert answered(BYPASS, mail).same  # it went on under TLS
    tunnel = replace(BY_API, protocol="http-proxy", action=Action.CAPTURE, tls=None)
    tunnel = replace(tunnel, reason=answered(BYPASS, tunnel).verdict.reason)
    assert "a tunnel through a proxy" in answered(BYPASS, tunnel).notes[0]


def test_a_difference_that_nothing_explains_is_said_to_be_one() -> None:
    found = answered(BYPASS, replace(BY_API, rule="another"))
    assert (found.same, found.explained, found.notes) == (False, False, (UNEXPLAINED,))


def test_a_rule_that_asks_for_what_is_not_on_record_is_named_and_may_be_the_one() -> None:
    """Nobody looks at the first bytes of what comes in past the gate; a long event was cut."""
    policy = Policy(rules=(Rule(name="curl's", action=Action.BYPASS, application=("/usr/bin/*",)),))
    cut = recorded(replace(BY_API, action=Action.BYPASS, rule="curl's", process=replace(CURL, exe="/opt/a…")))
    found = again(policy, past_connection({**cut, "clipped": True}))
    assert (found.same, found.explained) == (False, True)
    assert found.notes == (
        'rule "curl\'s" decided by application, which is not on record',
        'rule "curl\'s" asks for application, which is not on record',
    )
    assert found.story.tried[0].conditions[0].why == "it is not on record"


def test_of_plain_http_it_is_said_that_the_names_proof_is_not_on_record() -> None:
    found = answered(BYPASS, replace(BY_API, protocol="http", tls=None))
    assert found.same
    assert found.notes == ("whether a DNS answer gave the name this address is not on record; it is taken for proven",)


def test_of_a_program_that_could_not_be_read_on_failure_decides_again() -> None:
    applications = (Application(name="ann's", user=("ann",)),)
    rule = Rule(name="ann's", action=Action.BYPASS, application=("ann's",))
    unread = Process(pid=9, confidence=Confidence.UNKNOWN)
    for on_failure, action in ((OnFailure.OPEN, Action.BYPASS), (OnFailure.CLOSED, Action.BLOCK)):
        policy = Policy(applications=applications, rules=(rule,), on_failure=on_failure)
        found = answered(policy, replace(BY_API, process=unread, action=action, rule="on_failure"))
        assert (found.same, found.verdict.action) == (True, action)


def test_a_name_from_dns_decides_nothing_again() -> None:
    shown = replace(BY_API, tls=TlsFacts(client=TlsClientFacts()), named_by=NamedBy.DNS)
    assert answered(BYPASS, shown).verdict.rule == "defaults"
