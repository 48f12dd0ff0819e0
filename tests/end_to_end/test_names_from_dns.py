"""What a command's resolver answered names its flows that show no name, and is held against names that others show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BARE, V4, Mitmsec, Network, by_nftables

pytestmark = pytest.mark.root
RESOLVER = "127.0.0.53"
PYTHON = (sys.executable, "-I", "-S", "-c")
# Answers A and AAAA questions by a table; `lie:NAME` is answered with another id first.
SERVER = """
import ipaddress, json, socket, struct, sys
table = json.loads(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
print("up", flush=True)
while True:
    data, whose = s.recvfrom(2000)
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
        at += 1 + data[at]
    name, question = ".".join(labels), data[12 : at + 5]
    kind = int.from_bytes(data[at + 1 : at + 3], "big")
    of = {1: 4, 28: 6}.get(kind)
    found = [ip for ip in map(ipaddress.ip_address, table.get(name, [])) if ip.version == of]
    answers = b"".join(b"\\xc0\\x0c" + struct.pack("!HHIH", kind, 1, 60, len(ip.packed)) + ip.packed for ip in found)
    flags = 0x8180 if name in table else 0x8183
    body = struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + answers
    if name.startswith("lie"):
        s.sendto(struct.pack("!H", int.from_bytes(data[:2], "big") ^ 1) + body.replace(b"\\x03lie", b"\\x03not"), whose)
    s.sendto(data[:2] + body, whose)
"""
TABLE = json.dumps({"plain.zone": [V4], "origin.zone": [V4], "other.zone": [BARE], "lie.zone": [V4]})
ECHO = """
import socket, sys
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
while True:
    c, _ = l.accept()
    c.sendall(b"220 \\x01\\x02"); c.close()
"""
CONNECT = """
import socket, sys
for name in sys.argv[2:]:
    s = socket.create_connection((name, int(sys.argv[1])), 5); s.recv(99); s.close()
"""
BYPASS = '[defaults]\naction = "bypass"\n'


@pytest.fixture
def resolver(network: Network, tmp_path: Path) -> Iterator[None]:
    """A resolver of our own, named in /etc/resolv.conf for all that run in this network."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:2 attempts:1\n")
    mount = ["nsenter", f"--mount=/proc/{network.holder}/ns/mnt"]
    subprocess.run([*mount, "mount", "--bind", str(tmp_path / "resolv.conf"), "/etc/resolv.conf"], check=True)
    server = network.start(*PYTHON, SERVER, RESOLVER, TABLE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    try:
        yield
    finally:
        subprocess.run([*mount, "umount", "/etc/resolv.conf"], check=True)
        server.kill()
        server.wait()


@pytest.fixture
def speaker(network: Network) -> Iterator[str]:
    """Somebody on V4 and BARE who speaks first, and says nothing that is known; the port."""
    servers = [network.start(*PYTHON, ECHO, at, "7070", stdout=subprocess.PIPE, text=True) for at in (V4, BARE)]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
    yield "7070"
    for server in servers:
        server.kill()
        server.wait()


def tcp_of(mitmsec: Mitmsec) -> list[dict[str, Any]]:
    return [event for event in mitmsec.of_kind("connection") if "bytes" in event]


def test_a_flow_that_shows_no_name_is_named_by_the_answer_that_led_to_it(
    resolver: None, speaker: str, mitmsec: Mitmsec
) -> None:
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *PYTHON, CONNECT, speaker, "plain.zone", "other.zone")
    assert done.returncode == 0, done.stderr
    first, second = tcp_of(mitmsec)
    assert first["remote"] == {"address": V4, "port": 7070, "host": "plain.zone", "named_by": "dns"}
    assert second["remote"]["host"] == "other.zone"
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
    named, nameless = tcp_of(mitmsec)
    assert named["remote"]["host"] == "plain.zone"
    assert nameless["remote"] == {"address": BARE, "port": 7070, "host": None}


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


@by_nftables
def test_where_dns_is_not_seen_nothing_is_said_of_it(
    resolver: None, origin: Network, speaker: str, mitmsec: Mitmsec
) -> None:
    script = f'curl -sk -o /dev/null https://origin.zone/hello; exec {sys.executable} -c "$0" {speaker} plain.zone'
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", "sh", "-c", script, CONNECT)
    assert done.returncode == 0, done.stderr
    tls, plain = tcp_of(mitmsec)
    assert tls["tls"]["client"]["name_agrees"] is None
    assert plain["remote"]["host"] is None
