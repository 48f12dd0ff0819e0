"""DNS over HTTPS of a real client, curl, to a server that only has to be asked."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from conftest import V4, Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]
HOSTS = ("origin.test", "bank.test")
RULES = """
[[rule]]
name = "asked"
host = ["origin.test"]
action = "decrypt"
inspect = ["doh"]
on_finding = "alert"
[[rule]]
name = "refused"
host = ["bank.test"]
action = "decrypt"
inspect = ["doh"]
on_finding = "block"
[[rule]]
name = "resolvers"
category = ["doh"]
action = "block"
"""
CURL = "curl -s --max-time 10"
NAMED = {f"DNS over HTTPS asks for asked.test ({kind})" for kind in ("A", "AAAA")}


def test_a_question_over_https_is_named_or_refused_where_the_policy_asks_for_that_and_so_are_public_resolvers(
    origin: Network, mitmsec: Mitmsec
) -> None:
    question = base64.urlsafe_b64encode(bytes(12)).decode()
    commands = (
        f"{CURL} --doh-url https://origin.test/dns-query https://asked.test/",
        f"{CURL} --doh-url https://bank.test/dns-query https://asked.test/",
        f"{CURL} -k 'https://dns.google/dns-query?dns={question}' --resolve dns.google:443:{V4}",
    )
    script = "\n".join(f"{command}; echo $?" for command in commands)
    done = mitmsec.run("--policy", mitmsec.policy(RULES), "--", "sh", "-c", script)
    assert done.stdout.split() == ["6", "6", "35"], "nothing at that path answers questions; a reset"
    hosts = {flow["id"]: flow["remote"]["host"] for flow in mitmsec.of_kind("connection")}
    found, requests = (
        {host: [event for event in mitmsec.of_kind(kind) if hosts[event["connection"]] == host] for host in HOSTS}
        for kind in ("finding", "request")
    )
    named(found["origin.test"], requests["origin.test"])
    refused(found["bank.test"], requests["bank.test"])
    (flow,) = (one for one in mitmsec.of_kind("connection") if one["rule"] == "resolvers")
    assert (flow["action"], flow["remote"]["host"]) == ("block", "dns.google")


def named(findings: list[dict[str, Any]], requests: list[dict[str, Any]]) -> None:
    found = {event["summary"] for event in findings}
    assert {event["verdict"] for event in findings} == {"alert"}
    assert found & NAMED  # an origin that says no before it has heard the question cuts it short
    assert found <= NAMED | {"DNS over HTTPS asks for what cannot be read"}
    assert {(event["method"], event["status"]) for event in requests} == {("POST", 404)}
    assert all("asked.test" not in str(event) for event in requests)


def refused(findings: list[dict[str, Any]], requests: list[dict[str, Any]]) -> None:
    """Whoever it is for."""
    assert {(event["summary"], event["verdict"]) for event in findings} == {(name, "block") for name in NAMED}
    answers = {(event["status"], event["outcome"], event["answered_by"]) for event in requests}
    assert answers == {(403, "blocked", "mitmsec")}
