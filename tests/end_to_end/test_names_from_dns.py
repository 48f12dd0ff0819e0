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


def test_a_flow_that_shows_no_name_is_named_by_the_answer_that_led_to_it(
    resolver: None, speaker: str, mitmsec: Mitmsec
) -> None:
    """Also by one that did not fit into a datagram, and came over TCP."""
    names = ["plain.zone", "other.zone", "long.zone"]
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *PYTHON, CONNECT, speaker, *names)
    assert done.returncode == 0, done.stderr
    flows = [event["remote"] for event in tcp_of(mitmsec)]  # as they ended
    named = {"port": 7070, "named_by": "dns"}
    spoken_to = sorted((flow for flow in flows if flow["port"] == 7070), key=lambda flow: str(flow["host"]))
    assert spoken_to == [
        {"address": BARE, "host": "long.zone", **named},
        {"address": BARE, "host": "other.zone", **named},
        {"address": V4, "host": "plain.zone", **named},
    ]
    asked_again = [flow for flow in flows if flow["port"] != 7070]
    assert {(flow["address"], flow["port"]) for flow in asked_again} == {(RESOLVER, 53)}
    asked = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "dns"]
    assert {event["remote"]["address"] for event in asked} == {RESOLVER}
    assert mitmsec.of_kind("fault") == []


def test_an_answer_that_the_program_did_not_ask_for_names_nothing(
    resolver: None, speaker: str, mitmsec: Mitmsec
) -> None:
    """The resolver sends one with another id and another name before the right one."""
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *PYTHON, CONNECT, speaker, "lie.zone")
    assert done.returncode == 0, done.stderr
    (flow,) = tcp_of(mitmsec)
    assert flow["remote"]["host"] == "lie.zone"


def test_an_address_that_no_answer_gave_has_no_name(resolver: None, speaker: str, mitmsec: Mitmsec) -> None:
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *PYTHON, CONNECT, speaker, "plain.zone", BARE)
    assert done.returncode == 0, done.stderr
    named, nameless = sorted(tcp_of(mitmsec), key=lambda flow: str(flow["remote"]["address"]))  # not as they ended
    assert named["remote"]["host"] == "plain.zone"
    assert nameless["remote"] == {"address": BARE, "port": 7070, "host": None}


@all_backends
def test_a_udp_flow_is_named_too(resolver: None, mitmsec: Mitmsec) -> None:
    script = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('other.zone', 9))"
    assert mitmsec.run("--", *PYTHON, script).returncode == 0
    (flow,) = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "udp"]
    assert (flow["remote"]["host"], flow["remote"]["named_by"]) == ("other.zone", "dns")


def test_the_name_in_a_hello_is_held_against_the_answers(resolver: None, origin: Network, mitmsec: Mitmsec) -> None:
    """Three clients: one that goes where its name leads, one that goes elsewhere, one that never asked."""
    curl = "curl -sk -o /dev/null --max-time 10"
    words = [
        f"{curl} https://origin.zone/hello",
        f"{curl} --connect-to bank.zone:443:plain.zone:443 https://bank.zone/hello",
    ]
    script = f"{words[0]}; {words[1]}"
    assert mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", "sh", "-c", script).returncode == 0
    other = f"{curl} --resolve bank.zone:443:{V4} https://bank.zone/hello"
    assert mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", "sh", "-c", other).returncode == 0
    hellos = [event["tls"]["client"] for event in tcp_of(mitmsec)]
    assert [(hello["sni"], hello["name_agrees"]) for hello in hellos] == [
        ("origin.zone", "agree"),
        ("bank.zone", "disagree"),
        ("bank.zone", "unknown"),
    ]
    assert all("named_by" not in event["remote"] for event in tcp_of(mitmsec))


def test_what_is_decrypted_is_held_against_the_answers_too(resolver: None, origin: Network, mitmsec: Mitmsec) -> None:
    done = mitmsec.run(
        "--", "curl", "-sk", "-o", "/dev/null", "--connect-to", "::plain.zone:443", "https://origin.test/hello"
    )
    assert done.returncode == 0, done.stderr
    (flow,) = tcp_of(mitmsec)
    assert (flow["action"], flow["tls"]["client"]["name_agrees"]) == ("decrypt", "disagree")


@pytest.mark.parametrize("action", ["decrypt", "capture", "block"])
def test_a_name_that_only_dns_gave_decides_nothing(resolver: None, speaker: str, mitmsec: Mitmsec, action: str) -> None:
    policy = mitmsec.policy(f'{BYPASS}[[rule]]\nname = "by name"\nhost = ["plain.zone"]\naction = "{action}"\n')
    done = mitmsec.run("--policy", policy, "--", *PYTHON, CONNECT, speaker, "plain.zone")
    assert done.returncode == 0, done.stderr
    (flow,) = tcp_of(mitmsec)
    assert (flow["action"], flow["rule"], flow["remote"]["host"]) == ("bypass", "defaults", "plain.zone")


@pytest.mark.parametrize(("word", "issuer"), [("block", ""), ("decrypt", "mitmsec"), ("allow", "Test Origins nginx")])
def test_a_bypass_by_name_holds_only_where_an_answer_confirms_the_name(
    resolver: None, origin: Network, mitmsec: Mitmsec, word: str, issuer: str
) -> None:
    rule = '[[rule]]\nname = "bank"\nhost = ["bank.zone", "origin.zone"]\naction = "bypass"\n'
    policy = mitmsec.policy(f'[defaults]\nunproven_name = "{word}"\n{rule}')
    curl = "curl -sk --max-time 10 -o /dev/null -v"
    words = [f"{curl} https://origin.zone/hello", f"{curl} --connect-to bank.zone::plain.zone: https://bank.zone/hello"]
    done = [mitmsec.run("--policy", policy, "--", "sh", "-c", one) for one in words]
    assert "issuer: CN=Test Origins nginx" in done[0].stderr
    if issuer:
        assert f"issuer: CN={issuer}" in done[1].stderr, done[1].stderr
    else:
        assert "issuer:" not in done[1].stderr
    proven, doubtful = tcp_of(mitmsec)
    assert (proven["action"], proven["rule"], proven["tls"]["client"]["name_agrees"]) == ("bypass", "bank", "agree")
    expected = "bypass" if word == "allow" else word
    assert (doubtful["action"], doubtful["rule"]) == (expected, "bank")
    assert doubtful["tls"]["client"]["name_agrees"] == "disagree"
    assert proven["tls"]["client"]["name_certified"] is None, "nobody had to ask"
    assert doubtful["tls"]["client"]["name_certified"] is (None if word == "allow" else False)
