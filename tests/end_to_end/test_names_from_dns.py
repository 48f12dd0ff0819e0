"""What a command's resolver answered names its flows that show no name, and is held against names that others show."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import BARE, RESOLVER, V4, Mitmsec, Network, all_backends
from names_stage import CONNECT, PYTHON

pytestmark = [pytest.mark.root, pytest.mark.joined]
BYPASS = '[defaults]\naction = "bypass"\n'


def tcp_of(mitmsec: Mitmsec) -> list[dict[str, Any]]:
    return [event for event in mitmsec.of_kind("connection") if "bytes" in event]


def test_a_flow_that_shows_no_name_is_named_by_the_answer_that_led_to_it_and_by_no_other(
    resolver: None, speaker: str, mitmsec: Mitmsec
) -> None:
    """Also by one that did not fit into a datagram, and came over TCP.

    BARE is gone to before any answer gives it. For lie.zone the resolver sends an answer with another id and another
    name before the right one: the program did not ask for it.
    """
    names = ["plain.zone", BARE, "other.zone", "long.zone", "lie.zone"]
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *PYTHON, CONNECT, speaker, *names)
    assert done.returncode == 0, done.stderr
    flows = [event["remote"] for event in tcp_of(mitmsec)]  # as they ended
    named = {"port": 7070, "named_by": "dns"}
    spoken_to = sorted((flow for flow in flows if flow["port"] == 7070), key=lambda flow: str(flow["host"]))
    assert spoken_to == [
        {"address": BARE, "port": 7070, "host": None},
        {"address": V4, "host": "lie.zone", **named},
        {"address": BARE, "host": "long.zone", **named},
        {"address": BARE, "host": "other.zone", **named},
        {"address": V4, "host": "plain.zone", **named},
    ]
    asked_again = [flow for flow in flows if flow["port"] != 7070]
    assert {(flow["address"], flow["port"]) for flow in asked_again} == {(RESOLVER, 53)}
    asked = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "dns"]
    assert {event["remote"]["address"] for event in asked} == {RESOLVER}
    assert mitmsec.of_kind("fault") == []


@pytest.mark.unread
@all_backends
def test_a_udp_flow_is_named_too(resolver: None, mitmsec: Mitmsec) -> None:
    script = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('other.zone', 9))"
    assert mitmsec.run("--", *PYTHON, script).returncode == 0
    (flow,) = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "udp"]
    assert (flow["remote"]["host"], flow["remote"]["named_by"]) == ("other.zone", "dns")


def test_the_name_in_a_hello_is_held_against_the_answers(resolver: None, origin: Network, mitmsec: Mitmsec) -> None:
    """Three clients: one before anybody asked, one that goes where its name leads, one that goes elsewhere."""
    curl = "curl -sk -o /dev/null --max-time 10"
    words = [
        f"{curl} --resolve bank.zone:443:{V4} https://bank.zone/hello",
        f"{curl} https://origin.zone/hello",
        f"{curl} --connect-to bank.zone:443:plain.zone:443 https://bank.zone/hello",
    ]
    assert mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", "sh", "-c", "; ".join(words)).returncode == 0
    hellos = [event["tls"]["client"] for event in tcp_of(mitmsec)]
    assert [(hello["sni"], hello["name_agrees"]) for hello in hellos] == [
        ("bank.zone", "unknown"),
        ("origin.zone", "agree"),
        ("bank.zone", "disagree"),
    ]
    assert all("named_by" not in event["remote"] for event in tcp_of(mitmsec))


def test_a_name_that_only_dns_gave_decides_nothing(resolver: None, speaker: str, mitmsec: Mitmsec) -> None:
    by_name = {"plain.zone": "decrypt", "other.zone": "capture", "origin.zone": "block"}
    rules = (
        f'[[rule]]\nname = "{action}"\nhost = ["{host}"]\naction = "{action}"\n' for host, action in by_name.items()
    )
    policy = mitmsec.policy(BYPASS + "".join(rules))
    done = mitmsec.run("--policy", policy, "--", *PYTHON, CONNECT, speaker, *by_name)
    assert done.returncode == 0, done.stderr
    flows = sorted((flow["action"], flow["rule"], flow["remote"]["host"]) for flow in tcp_of(mitmsec))
    assert flows == [("bypass", "defaults", host) for host in sorted(by_name)]


@pytest.mark.parametrize(("word", "issuer"), [("block", ""), ("decrypt", "mitmsec"), ("allow", "Test Origins nginx")])
def test_a_bypass_by_name_holds_only_where_an_answer_confirms_the_name(
    resolver: None, origin: Network, mitmsec: Mitmsec, word: str, issuer: str
) -> None:
    """What no rule names is decrypted, and its name is held against the answers as well."""
    rule = '[[rule]]\nname = "bank"\nhost = ["bank.zone", "origin.zone"]\naction = "bypass"\n'
    policy = mitmsec.policy(f'[defaults]\nunproven_name = "{word}"\n{rule}')
    curl = "curl -sk --max-time 10 -o /dev/null -v"
    words = [
        f"{curl} https://origin.zone/hello",
        f"{curl} --connect-to bank.zone::plain.zone: https://bank.zone/hello",
        f"{curl} --connect-to ::plain.zone:443 https://origin.test/hello",
    ]
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", "; echo next >&2; ".join(words))
    assert done.returncode == 0, done.stderr
    of_proven, of_doubtful, _ = done.stderr.split("next\n")
    assert "issuer: CN=Test Origins nginx" in of_proven
    if issuer:
        assert f"issuer: CN={issuer}" in of_doubtful, of_doubtful
    else:
        assert "issuer:" not in of_doubtful
    proven, doubtful, read = tcp_of(mitmsec)
    assert (proven["action"], proven["rule"], proven["tls"]["client"]["name_agrees"]) == ("bypass", "bank", "agree")
    expected = "bypass" if word == "allow" else word
    assert (doubtful["action"], doubtful["rule"]) == (expected, "bank")
    assert doubtful["tls"]["client"]["name_agrees"] == "disagree"
    assert proven["tls"]["client"]["name_certified"] is None, "nobody had to ask"
    assert doubtful["tls"]["client"]["name_certified"] is (None if word == "allow" else False)
    assert (read["action"], read["tls"]["client"]["name_agrees"]) == ("decrypt", "disagree")
