"""DNS over HTTPS of a real client, curl, to a server that only has to be asked."""

from __future__ import annotations

import base64

import pytest
from conftest import V4, Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]
RULE = """
[[rule]]
name = "asked"
action = "decrypt"
inspect = ["doh"]
on_finding = "{}"
"""
CURL = ("curl", "-s", "--max-time", "10", "--doh-url", "https://origin.test/dns-query", "https://asked.test/")
NAMED = {f"DNS over HTTPS asks for asked.test ({kind})" for kind in ("A", "AAAA")}


def findings(mitmsec: Mitmsec, verdict: str) -> set[str]:
    found = mitmsec.of_kind("finding")
    assert {event["verdict"] for event in found} <= {verdict}
    return {event["summary"] for event in found}


def test_a_question_over_https_is_named_where_the_policy_asks_for_that(origin: Network, mitmsec: Mitmsec) -> None:
    done = mitmsec.run("--policy", mitmsec.policy(RULE.format("alert")), "--", *CURL)
    assert done.returncode == 6, "nothing at that path answers questions"
    found = findings(mitmsec, "alert")  # an origin that says no before it has heard the question cuts it short
    assert found & NAMED
    assert found <= NAMED | {"DNS over HTTPS asks for what cannot be read"}
    requests = mitmsec.of_kind("request")
    assert {(event["method"], event["status"]) for event in requests} == {("POST", 404)}
    assert all("asked.test" not in str(event) for event in requests)


def test_a_question_over_https_is_refused_whoever_it_is_for(origin: Network, mitmsec: Mitmsec) -> None:
    done = mitmsec.run("--policy", mitmsec.policy(RULE.format("block")), "--", *CURL)
    assert done.returncode == 6
    assert findings(mitmsec, "block") == NAMED
    refused = {(event["status"], event["outcome"], event["answered_by"]) for event in mitmsec.of_kind("request")}
    assert refused == {(403, "blocked", "mitmsec")}


def test_public_resolvers_can_be_refused_by_their_category(origin: Network, mitmsec: Mitmsec) -> None:
    policy = '[[rule]]\nname = "resolvers"\ncategory = ["doh"]\naction = "block"\n'
    question = base64.urlsafe_b64encode(bytes(12)).decode()
    asked = (f"https://dns.google/dns-query?dns={question}", "--resolve", f"dns.google:443:{V4}")
    assert mitmsec.run("--policy", mitmsec.policy(policy), "--", "curl", "-sk", *asked).returncode == 35
    (flow,) = mitmsec.of_kind("connection")
    assert (flow["action"], flow["rule"], flow["remote"]["host"]) == ("block", "resolvers", "dns.google")
