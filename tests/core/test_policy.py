"""The two questions, and what a decision says."""

from __future__ import annotations

import hashlib

import msgspec
import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from policies import NOON_S

from mitmsec.core.known_service import KnownService
from mitmsec.core.model import (
    Action,
    Decision,
    Direction,
    Endpoint,
    Learning,
    OnFailure,
    OnFinding,
    Process,
    Quic,
    Revocation,
    TlsVersion,
    Transparency,
    UnprovenName,
    Upstream,
    UpstreamTrust,
)
from mitmsec.core.policy import DEFAULT_POLICY, Policy, Rule, subject
from mitmsec.core.sniff import NOTHING_SHOWN, Protocol, Shown

WEB = Endpoint(address="192.0.2.1", port=443)
BANKS = Rule(name="banks", action=Action.BYPASS, host=("*.bank.example",), reason="agreement 4.2")
SSH = Rule(name="ssh", action=Action.CAPTURE, port=((22, 22),))


def test_the_default_policy_decrypts_everything_at_once() -> None:
    decision = DEFAULT_POLICY.at_connect(policies.CURL, WEB, NOON_S)
    assert decision == Decision(
        action=Action.DECRYPT,
        rule="defaults",
        reason="no rule matched; [defaults] decide",
        learning=Learning(after=3, on_request=True),
    )
    assert (
        DEFAULT_POLICY.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.example", alpn=("h2",), ja4="t"))
        == decision
    )
    settings = (DEFAULT_POLICY.on_failure, DEFAULT_POLICY.quic, DEFAULT_POLICY.upstream)
    assert settings == (OnFailure.OPEN, Quic.REFUSE, Upstream.MIRROR)


@given(policies.policies, policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_an_early_answer_is_never_another_answer(
    policy: Policy, process: Process, remote: Endpoint, shown: Shown, at_s: float
) -> None:
    early = policy.at_connect(process, remote, at_s)
    assert early in (None, policy.at_hello(process, remote, at_s, shown=shown))


@given(
    policies.policies,
    st.sampled_from([policies.FIREFOX, policies.HELPER]),
    st.data(),
    policies.endpoints,
    policies.moments,
)
def test_what_is_judged_without_knowing_all_of_a_program_is_judged_as_with_it(
    policy: Policy, whole: Process, data: st.DataObject, remote: Endpoint, at_s: float
) -> None:
    unread = data.draw(st.sets(st.sampled_from(["exe", "name", "user", "sha256", "parent"])))
    partly = msgspec.structs.replace(whole, **dict.fromkeys(unread))
    shown = data.draw(policies.shows)
    if policy.can_judge(partly):
        assert policy.at_connect(partly, remote, at_s) == policy.at_connect(whole, remote, at_s)
        assert policy.at_hello(partly, remote, at_s, shown=shown) == policy.at_hello(whole, remote, at_s, shown=shown)


def test_a_policy_that_asks_for_no_program_can_judge_any() -> None:
    assert Policy(rules=(Rule(name="r", host=("a.example",), action=Action.BLOCK),)).can_judge(policies.UNKNOWN)
    asking = Policy(rules=(Rule(name="r", application=("/bin/x",), action=Action.BLOCK),))
    assert not asking.can_judge(policies.UNKNOWN)
    assert asking.can_judge(policies.CURL)


@given(policies.policies)
def test_a_policy_goes_through_json_unchanged_even_after_use(policy: Policy) -> None:
    policy.at_connect(policies.CURL, WEB, NOON_S)
    copy = msgspec.json.decode(msgspec.json.encode(policy), type=Policy)
    assert copy == policy
    assert copy.at_hello(policies.CURL, WEB, NOON_S, shown=NOTHING_SHOWN) == policy.at_hello(
        policies.CURL, WEB, NOON_S, shown=NOTHING_SHOWN
    )


def test_a_rule_with_a_host_waits_for_the_name_and_never_takes_a_nameless_flow() -> None:
    policy = Policy(rules=(BANKS,))
    assert policy.at_connect(policies.CURL, WEB, NOON_S) is None
    assert policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("www.bank.example")).rule == "banks"
    assert policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("bank.example")).rule == "defaults"
    assert policy.at_hello(policies.CURL, WEB, NOON_S, shown=NOTHING_SHOWN).rule == "defaults"


def test_a_rule_that_comes_first_without_a_host_settles_the_flow_at_connect() -> None:
    policy = Policy(rules=(SSH, BANKS))
    decision = policy.at_connect(policies.CURL, Endpoint(address="192.0.2.1", port=22), NOON_S)
    assert decision is not None
    assert decision.rule == "ssh"


def test_a_rule_about_quic_holds_up_no_connection_over_tcp_and_decides_none() -> None:
    quic = Rule(name="quic", action=Action.BLOCK, protocol=(Protocol.QUIC,))
    policy = Policy(action=Action.BYPASS, rules=(quic,))
    early = policy.at_connect(policies.CURL, WEB, NOON_S)
    assert early is not None
    assert early == policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.example"))
    assert policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.example", Protocol.QUIC)).rule == "quic"
    both = Policy(rules=(replace(quic, protocol=(Protocol.QUIC, Protocol.TLS)),))
    assert both.at_connect(policies.CURL, WEB, NOON_S) is None
    assert policy.at_silence(policies.CURL, WEB, NOON_S) == (early, True)


def test_two_rules_of_the_same_action_are_two_answers() -> None:
    same = Rule(name="other", action=Action.BYPASS)
    assert Policy(rules=(BANKS, same)).at_connect(policies.CURL, WEB, NOON_S) is None


@pytest.mark.parametrize(
    ("rule", "inspect", "on_finding"),
    [
        (Rule(name="r", action=Action.DECRYPT), ("keywords",), OnFinding.ALERT),
        (Rule(name="r", action=Action.DECRYPT, inspect=()), (), OnFinding.ALERT),
        (Rule(name="r", action=Action.DECRYPT, inspect=("x",), on_finding=OnFinding.BLOCK), ("x",), OnFinding.BLOCK),
        (Rule(name="r", action=Action.BYPASS), (), OnFinding.ALERT),
        (None, ("keywords",), OnFinding.ALERT),
    ],
)
def test_what_a_decision_inspects(rule: Rule | None, inspect: tuple[str, ...], on_finding: OnFinding) -> None:
    policy = Policy(inspect=("keywords",), upstream=Upstream.BLOCK, rules=(rule,) if rule else ())
    decision = policy.at_hello(policies.CURL, WEB, NOON_S, shown=NOTHING_SHOWN)
    assert (decision.inspect, decision.on_finding, decision.upstream) == (inspect, on_finding, Upstream.BLOCK)


@pytest.mark.parametrize("word", UnprovenName)
def test_a_bypass_by_name_that_nothing_confirms_is_what_the_policy_says_of_those(word: UnprovenName) -> None:
    policy = Policy(rules=(BANKS,), unproven_name=word, inspect=("keywords",), upstream=Upstream.BLOCK)
    proven = policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.bank.example"), proven=True)
    doubtful = policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.bank.example"), proven=False)
    assert (proven.action, proven.reason, proven.inspect) == (Action.BYPASS, "agreement 4.2", ())
    assert (doubtful.rule, doubtful.upstream) == ("banks", Upstream.BLOCK)
    match word:
        case UnprovenName.ALLOW:
            assert doubtful == proven
        case UnprovenName.BLOCK:
            assert (doubtful.action, doubtful.inspect) == (Action.BLOCK, ())
        case UnprovenName.DECRYPT:
            assert (doubtful.action, doubtful.inspect) == (Action.DECRYPT, ("keywords",))
    said = f'agreement 4.2; no DNS answer confirms the name, and unproven_name = "{word}"'
    assert (doubtful.reason == said) == (word is not UnprovenName.ALLOW)


@pytest.mark.parametrize("word", UnprovenName)
@given(policy=policies.policies, process=policies.processes, remote=policies.endpoints, shown=policies.shows)
def test_an_unproven_name_changes_nothing_but_a_bypass_by_name(
    word: UnprovenName, policy: Policy, process: Process, remote: Endpoint, shown: Shown
) -> None:
    doubting = msgspec.structs.replace(policy, unproven_name=word)
    proven = policy.at_hello(process, remote, NOON_S, shown=shown, proven=True)
    doubtful = doubting.at_hello(process, remote, NOON_S, shown=shown, proven=False)
    by_name = any(rule.asks_name and rule.name == proven.rule for rule in policy.rules)
    if proven.action is not Action.BYPASS or not by_name or word is UnprovenName.ALLOW:
        learning = replace(proven.learning, needs_proof=doubtful.learning.needs_proof)
        assert doubtful == replace(proven, learning=learning)
    else:
        assert doubtful.action.value == word.value
    early = doubting.at_connect(process, remote, NOON_S)
    assert early in (None, doubtful), "an early answer is never another answer, proven or not"


def test_a_reason_is_the_own_one_of_a_rule_or_says_what_the_rule_is_about() -> None:
    policy = Policy(rules=(BANKS, SSH))
    assert policy.at_hello(policies.CURL, WEB, NOON_S, shown=Shown.of("a.bank.example")).reason == "agreement 4.2"
    reason = policy.at_hello(policies.CURL, Endpoint(address="", port=22), NOON_S, shown=NOTHING_SHOWN).reason
    assert reason == 'rule "ssh" takes connections, port 22'


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(name="r", action=Action.BLOCK), "every connection"),
        (
            Rule(
                name="r",
                action=Action.BLOCK,
                application=("browsers",),
                host=("@a",),
                category=("finance",),
                address=("10.0.0.0/8",),
            ),
            "connections of browsers to @a, 10.0.0.0/8, category finance",
        ),
        (
            Rule(name="r", action=Action.BLOCK, host=("a", "b", "c", "d", "e"), port=((1, 2),)),
            "connections to a, b, c and 2 more, port 1-2",
        ),
    ],
)
def test_a_rule_in_words(rule: Rule, words: str) -> None:
    assert subject(rule) == words


@given(policies.policies, st.data(), policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_each_direction_is_answered_by_its_own_rules_alone(
    policy: Policy, data: st.DataObject, process: Process, remote: Endpoint, shown: Shown, at_s: float
) -> None:
    mixed = tuple(
        msgspec.structs.replace(rule, direction=data.draw(st.sampled_from(Direction))) for rule in policy.rules
    )
    both = msgspec.structs.replace(policy, rules=mixed)
    for direction in Direction:
        mine = tuple(rule for rule in mixed if rule.direction is direction)
        alone = msgspec.structs.replace(policy, rules=mine)
        assert both.at_hello(process, remote, at_s, shown=shown, direction=direction) == alone.at_hello(
            process, remote, at_s, shown=shown, direction=direction
        )
        assert both.at_connect(process, remote, at_s, direction) == alone.at_connect(process, remote, at_s, direction)
        assert both.can_judge(process, direction) == alone.can_judge(process, direction)


def test_incoming_connections_have_defaults_of_their_own() -> None:
    policy = Policy(action=Action.BLOCK, rules=(SSH,))
    said = policy.at_connect(policies.CURL, Endpoint(address="192.0.2.1", port=22), NOON_S, Direction.INBOUND)
    reason = "no rule for incoming connections matched; [defaults] inbound decides"
    assert said == Decision(action=Action.BYPASS, rule="defaults", reason=reason)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(name="r", action=Action.BYPASS, direction=Direction.INBOUND), "every incoming connection"),
        (
            Rule(
                name="r", action=Action.BYPASS, direction=Direction.INBOUND, address=("192.0.2.0/24",), port=((1, 1),)
            ),
            "incoming connections from 192.0.2.0/24, port 1",
        ),
    ],
)
def test_what_a_rule_for_incoming_connections_takes_in_words(rule: Rule, words: str) -> None:
    assert subject(rule) == words


@pytest.mark.parametrize(
    ("policy", "governs"),
    [
        (Policy(action=Action.BLOCK, rules=(SSH,)), False),
        (Policy(rules=(Rule(name="in", action=Action.BYPASS, direction=Direction.INBOUND),)), False),
        (Policy(rules=(Rule(name="in", action=Action.BLOCK, direction=Direction.INBOUND),)), True),
        (Policy(inbound=Action.CAPTURE), True),
    ],
)
def test_the_gate_has_what_comes_in_only_where_something_else_than_bypass_may_become_of_it(
    policy: Policy, governs: bool
) -> None:
    assert policy.governs_inbound is governs


SHOP = KnownService(name="shop", names=("shop.example", "192.0.2.1"), port=((443, 443),))
CALLED = Endpoint(address="192.0.2.1", port=443)


def keyed(action: Action = Action.DECRYPT, on_failure: OnFailure = OnFailure.OPEN) -> tuple[Policy, Decision]:
    policy = Policy(inbound=action, on_failure=on_failure, services=(SHOP,), inspect=("keywords",))
    return policy, policy.decided_by(None, Direction.INBOUND)


@pytest.mark.parametrize(("name", "address"), [("shop.example", ""), (None, "192.0.2.1")])
def test_what_comes_in_is_decrypted_with_the_key_of_the_service_that_was_called(name: str | None, address: str) -> None:
    policy, decision = keyed()
    known = policy.with_key(decision, Endpoint(address=address, port=443), name)
    assert known == replace(decision, service="shop")
    assert known.inspect == ("keywords",)


@pytest.mark.parametrize(
    ("name", "called", "whom"),
    [
        ("other.example", CALLED, "other.example on port 443"),
        ("shop.example", Endpoint(address="192.0.2.1", port=8443), "shop.example on port 8443"),
        (None, Endpoint(address="192.0.2.2", port=443), "a peer that names no host on port 443"),
    ],
)
@pytest.mark.parametrize(
    ("on_failure", "action", "end"),
    [
        (OnFailure.OPEN, Action.BYPASS, ", so it is relayed unread"),
        (OnFailure.CLOSED, Action.BLOCK, ', and on_failure = "closed"'),
    ],
)
def test_without_a_key_it_is_not_decrypted(
    name: str | None, called: Endpoint, whom: str, on_failure: OnFailure, action: Action, end: str
) -> None:
    policy, decision = keyed(on_failure=on_failure)
    found = policy.with_key(decision, called, name)
    assert (found.action, found.service, found.inspect, found.rule) == (action, "", (), "defaults")
    assert found.reason == f"{decision.reason}; no [[inbound]] is for {whom}{end}"


@pytest.mark.parametrize("action", [Action.BYPASS, Action.BLOCK, Action.CAPTURE])
def test_what_is_not_to_be_decrypted_needs_no_key(action: Action) -> None:
    policy, decision = keyed(action)
    assert policy.with_key(decision, CALLED, "shop.example") is decision


@pytest.mark.parametrize(
    ("policy", "decrypts"),
    [
        (Policy(rules=(Rule(name="out", action=Action.DECRYPT),)), False),
        (Policy(rules=(Rule(name="in", action=Action.DECRYPT, direction=Direction.INBOUND),)), True),
        (Policy(inbound=Action.DECRYPT), True),
        (Policy(inbound=Action.CAPTURE), False),
    ],
)
def test_workers_have_keys_only_where_something_that_comes_in_is_decrypted(policy: Policy, decrypts: bool) -> None:
    assert policy.decrypts_inbound is decrypts


@pytest.mark.parametrize(
    ("policy", "needs"),
    [
        (Policy(), True),
        (Policy(action=Action.BYPASS), False),
        (Policy(action=Action.BLOCK, rules=(Rule(name="kept", action=Action.CAPTURE),)), False),
        (Policy(action=Action.BYPASS, rules=(Rule(name="read", action=Action.DECRYPT),)), True),
        (Policy(action=Action.BYPASS, rules=(Rule(name="shown", action=Action.BLOCK, page=True),)), True),
        (Policy(action=Action.BYPASS, inbound=Action.DECRYPT), True),
    ],
)
def test_workers_are_needed_where_something_is_decrypted_or_shown(policy: Policy, needs: bool) -> None:
    assert policy.needs_workers is needs


def test_a_fingerprint_is_of_all_that_decides_and_the_same_everywhere() -> None:
    rule = Rule(name="a", action=Action.BYPASS, host=(".listed.example",))
    one = Policy(rules=(rule,), upstream_roots=("corp.pem",), root_sha256s=("ab",))
    again = msgspec.json.decode(one.encoded, type=Policy)
    assert again.fingerprint == one.fingerprint == hashlib.sha256(one.encoded).hexdigest()
    others = (
        replace(one, rules=(replace(rule, host=(".listed.example", ".another.example")),)),
        replace(one, root_sha256s=("cd",)),
        replace(one, inspectors=(("keywords", ("word",)),)),
    )
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_while_a_client_is_silent_its_origin_may_be_contacted_if_any_greeting_lets_it() -> None:
    mail = Rule(name="mail", action=Action.BYPASS, protocol=(Protocol.SMTP,))
    closed = Policy(action=Action.BLOCK, rules=(mail,))
    assert closed.at_connect(policies.CURL, WEB, NOON_S) is None
    decision, is_last = closed.at_silence(policies.CURL, WEB, NOON_S)
    assert (decision.rule, decision.action, is_last) == ("mail", Action.BYPASS, False)
    both = Policy(action=Action.BLOCK, rules=(replace(mail, action=Action.BLOCK),))
    decision, is_last = both.at_silence(policies.CURL, WEB, NOON_S)
    assert (decision.rule, decision.action, is_last) == ("defaults", Action.BLOCK, False)
    decision, is_last = Policy(rules=both.rules).at_silence(policies.CURL, WEB, NOON_S)
    assert (decision.rule, decision.action, is_last) == ("defaults", Action.DECRYPT, False)
    assert Policy(rules=(replace(mail, protocol=(Protocol.TLS,)),)).at_silence(policies.CURL, WEB, NOON_S)[1]


def test_what_a_rule_is_about_is_said_with_all_its_conditions() -> None:
    rule = Rule(name="r", action=Action.BLOCK, user=("joe",), protocol=(Protocol.TLS,), alpn=("h2",), ja4=("t13*",))
    assert subject(rule) == "connections of user joe, protocol tls, ALPN h2, JA4 t13*"
    assert subject(Rule(name="r", action=Action.BLOCK, ech=(True,))) == "connections, hello encrypted"
    assert subject(Rule(name="r", action=Action.BLOCK, ech=(False,))) == "connections, hello in the clear"
    timed = Rule(name="r", action=Action.BLOCK, time=("Mon",), expires="2026-12-31", expires_s=1, owner="joe")
    assert subject(timed) == "connections, time Mon, until 2026-12-31"
    assert Policy().decided_by(timed).owner == "joe"


def test_a_rule_about_first_bytes_brings_what_comes_in_to_the_gate() -> None:
    asks = Rule(name="r", action=Action.BYPASS, direction=Direction.INBOUND, protocol=(Protocol.SSH,))
    assert Policy(rules=(asks,)).governs_inbound
    assert not Policy(rules=(replace(asks, direction=Direction.OUTBOUND),)).governs_inbound
    assert not Policy(rules=(replace(asks, protocol=()),)).governs_inbound


def test_a_rule_may_ask_more_or_less_of_origins_than_the_defaults() -> None:
    own = Rule(
        name="r",
        action=Action.DECRYPT,
        upstream=Upstream.ACCEPT,
        upstream_revocation=Revocation.HARD,
        upstream_sct=Transparency.OFF,
        min_tls=TlsVersion.TLS13,
    )
    policy = Policy(upstream=Upstream.BLOCK, upstream_revocation=Revocation.OFF)
    said = policy.decided_by(own)
    assert (said.upstream, said.revocation, said.sct, said.min_tls) == (
        Upstream.ACCEPT,
        Revocation.HARD,
        Transparency.OFF,
        TlsVersion.TLS13,
    )
    said = policy.decided_by(Rule(name="r", action=Action.DECRYPT))
    assert (said.upstream, said.revocation, said.sct, said.min_tls) == (Upstream.BLOCK, None, None, TlsVersion.TLS12)


def test_what_rules_say_of_roots_is_known_beside_the_defaults() -> None:
    strict = Rule(name="r", action=Action.DECRYPT, upstream_trust=UpstreamTrust.PUBLIC)
    assert Policy(rules=(strict, SSH)).trusts == {UpstreamTrust.SYSTEM, UpstreamTrust.PUBLIC}
    assert Policy(upstream_trust=UpstreamTrust.PUBLIC, rules=(strict,)).trusts == {UpstreamTrust.PUBLIC}
    assert (Policy().decided_by(strict).trust, Policy().decided_by(SSH).trust) == (UpstreamTrust.PUBLIC, None)


def test_it_says_which_servers_its_inspectors_ask_and_which_of_them_are_clamds() -> None:
    asks = (("malware", ("/run/clamav/clamd.ctl",)), ("icap", ("icap://127.0.0.1:1344/scan",)), ("keywords", ("/x",)))
    policy = Policy(inspectors=asks)
    assert policy.servers == ("/run/clamav/clamd.ctl", "127.0.0.1:1344")
    assert policy.clamds == ("/run/clamav/clamd.ctl",)
