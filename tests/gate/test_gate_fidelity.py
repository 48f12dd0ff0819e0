"""Nothing is decrypted but what the policy says, and all that it says: written policies, and flows as they come.

A policy is drawn as it is written, becomes TOML, and is read as every policy file is. A flow is bytes, and goes through
the gate's own mind in the order in which things may happen. What must become of it is read off what was written, by
`said` below: it follows the words of the interface, and shares no code with the product.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections import Counter
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from hellos import alpn, hello, server_name

from mitmsec.config import PolicyErrors, parse_policy, zone_data
from mitmsec.core.messages import FlowEnded, Upgrading
from mitmsec.core.model import Confidence, Direction, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import Sniffed, first_bytes
from mitmsec.gate import signals as s
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.inward import Inward
from mitmsec.gate.learned import Learned
from mitmsec.gate.names import Names
from mitmsec.gate.terms import Terms

POLICIES, FLOWS_EACH = 500, 200
CLIENT, GATE = Endpoint(address="127.0.0.1", port=40000), Endpoint(address="127.0.0.1", port=8000)
NOON_S = 1_767_610_800  # Monday, 5 January 2026, 11:00 UTC
HOSTS = ("bank.example", "www.bank.example", "a.b.bank.example", "notbank.example", "evil.test", "x.evil.test", "test")
LISTED = ("bank.example", "evil.test")
ADDRESSES = ("192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::7")
PORTS = (25, 80, 443, 8443)
WEEKS = {
    "Mon-Fri 08:00-18:00 UTC": lambda at: at.weekday() < 5 and 8 <= at.hour < 18,
    "Sat,Sun UTC": lambda at: at.weekday() >= 5,
    "22:00-06:00 UTC": lambda at: at.hour >= 22 or at.hour < 6,
}
PROGRAMS = {"/usr/lib/firefox/firefox": "browsers", "/usr/bin/curl": "", "/opt/sync/sync": ""}
UPGRADE_LINE, GREETING = b"EHLO me.example\r\n", b"220 mail.example ESMTP\r\n"
REFUSED = ("can never match", "wanted among these", "none of these shows a name")  # rules that no file may have
SPOKEN = ("tls", "tls", "tls", "http", "smtp", "greeted", "ssh", "tcp")
READ = {"tls", "http", "smtp"}  # what decrypting makes readable; the rest is as `capture`


# --- what is written, and what that says ------------------------------------------------------------------------------
def drawn_rule(draw: random.Random, number: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": f"rule {number}", "action": draw.choice(["decrypt", "bypass", "block", "capture"])}
    if draw.random() < 0.15:
        rule["direction"] = "inbound"
        rule["action"] = draw.choice(["bypass", "block", "capture"])  # no service's key is known
    choices: dict[str, list[Any]] = {
        "application": ["browsers", "/usr/bin/*", "/opt/sync/sync"],
        "user": ["joe", "4242"],
        "port": [443, "20-100", "8000-9000"],
        "address": ["192.0.2.0/25", "192.0.2.0/24", "198.51.100.7", "2001:db8::/32"],
        "time": list(WEEKS),
    }
    if "direction" not in rule:
        hosts = [mark + name for mark in ("", "*.") for name in HOSTS]
        choices |= {"host": [*hosts, "@names.txt", "Bank.EXAMPLE"], "alpn": ["h2", "http/*"], "ja4": list(JA4_GLOBS)}
        choices |= {"protocol": ["tls", "http", "smtp", "ssh", "tcp"]}
    for key, values in choices.items():
        if draw.random() < (0.35 if key == "host" else 0.18):
            rule[key] = draw.sample(values, draw.randint(1, 2))
    if draw.random() < 0.2:
        rule["expires"] = datetime.fromtimestamp(NOON_S + draw.randint(-9, 9) * 3600, UTC)
    return rule


def drawn_policy(draw: random.Random) -> tuple[dict[str, Any], Policy]:
    """As it is written, and as it is read."""
    while True:
        written = {
            "action": draw.choice(["decrypt", "decrypt", "bypass", "block", "capture"]),
            "inbound": draw.choice(["bypass", "block", "capture"]),
            "rules": [drawn_rule(draw, number) for number in range(draw.randint(1, 7))],
        }
        try:
            return written, read(written)
        except PolicyErrors as errors:
            if not any(one in str(errors) for one in REFUSED):
                raise


def read(written: dict[str, Any]) -> Policy:
    lines = ["version = 1", "[defaults]", *(f"{key} = {json.dumps(written[key])}" for key in ("action", "inbound"))]
    lines += ["[[application]]", 'name = "browsers"', 'path = ["/usr/lib/firefox/*"]']
    for rule in written["rules"]:
        lines.append("[[rule]]")
        for key, value in rule.items():
            lines.append(f"{key} = {value.isoformat() if isinstance(value, datetime) else json.dumps(value)}")
    names = "\n".join(LISTED)
    return parse_policy("\n".join(lines), file="drawn", read_list=lambda name: names, zone=zone_data)


def said(written: dict[str, Any], flow: dict[str, Any]) -> str:
    """The action, by the words of the interface: the first rule all of whose conditions hold, else the defaults."""
    for rule in written["rules"]:
        conditions = {key: value for key, value in rule.items() if key in HOLDS}
        if rule.get("direction", "outbound") == flow["direction"] and all(
            HOLDS[key](value, flow) for key, value in conditions.items()
        ):
            return str(rule["action"])
    return str(written["action" if flow["direction"] == "outbound" else "inbound"])


def is_named(written: str, name: str) -> bool:
    if written.startswith("@"):
        return any(name == one or name.endswith("." + one) for one in LISTED)
    return name.endswith(written[1:]) if written.startswith("*.") else name == written


def is_port(written: int | str, port: int) -> bool:
    low, _, high = str(written).partition("-")
    return int(low) <= port <= int(high or low)


HOLDS: dict[str, Any] = {
    "application": lambda v, f: any(one in (PROGRAMS[f["exe"]] or None,) or fnmatchcase(f["exe"], one) for one in v),
    "user": lambda v, f: f["user"] in v,
    "host": lambda v, f: f["name"] is not None and any(is_named(one.lower(), f["name"].lower()) for one in v),
    "port": lambda v, f: any(is_port(one, f["port"]) for one in v),
    "address": lambda v, f: any(ipaddress.ip_address(f["address"]) in ipaddress.ip_network(one) for one in v),
    "protocol": lambda v, f: f["protocol"] in v,
    "alpn": lambda v, f: any(fnmatchcase(offer, one) for one in v for offer in f["alpn"]),
    "ja4": lambda v, f: f["ja4"] is not None and any(fnmatchcase(f["ja4"], one) for one in v),
    "time": lambda v, f: any(WEEKS[one](datetime.fromtimestamp(f["at_s"], UTC)) for one in v),
    "expires": lambda v, f: f["at_s"] < v.timestamp(),
}


# --- flows ------------------------------------------------------------------------------------------------------------
def tls_of(name: str | None, offers: tuple[str, ...]) -> bytes:
    extensions = [server_name(name.encode())] if name is not None else []
    return hello(*extensions, *([alpn(*(offer.encode() for offer in offers))] if offers else []))


def ja4_of(name: str | None, offers: tuple[str, ...]) -> str:
    sniffed = first_bytes(tls_of(name, offers))
    assert isinstance(sniffed, Sniffed)
    assert sniffed.hello is not None
    return sniffed.hello.ja4


OFFERS: tuple[tuple[str, ...], ...] = ((), ("h2", "http/1.1"), ("http/1.1",))
NAMES = (None, *HOSTS, "WWW.Bank.Example", "Evil.TEST")
JA4 = {(name, offers): ja4_of(name, offers) for name in NAMES for offers in OFFERS}
HELLOS = {key: tls_of(*key) for key in JA4}
JA4_GLOBS = ("t1*", f"{JA4[None, OFFERS[0]][:8]}*", JA4["test", OFFERS[1]])


def drawn_flow(draw: random.Random) -> dict[str, Any]:
    spoken = draw.choice(SPOKEN)
    flow: dict[str, Any] = {
        "direction": "inbound" if draw.random() < 0.1 else "outbound",
        "spoken": spoken,
        "protocol": "smtp" if spoken == "greeted" else spoken,
        "exe": draw.choice(list(PROGRAMS)),
        "user": draw.choice(["joe", "root", "4242"]),
        "address": draw.choice(ADDRESSES),
        "port": draw.choice(PORTS),
        "at_s": NOON_S + draw.choice([draw.randint(-9, 9) * 3600, draw.randint(-604800, 604800)]),
        "name": draw.choice(NAMES) if spoken in ("tls", "http") else None,
        "alpn": (),
        "ja4": None,
    }
    return _with_hello(draw, flow) if spoken == "tls" else flow


def _with_hello(draw: random.Random, flow: dict[str, Any]) -> dict[str, Any]:
    offers = draw.choice(OFFERS)
    return flow | {"alpn": offers, "ja4": JA4[flow["name"], offers]}


def bytes_of(flow: dict[str, Any]) -> bytes:
    match flow["spoken"]:
        case "tls":
            return HELLOS[flow["name"], flow["alpn"]]
        case "http":
            host = f"Host: {flow['name']}\r\n" if flow["name"] else ""
            return f"GET / HTTP/1.1\r\n{host}\r\n".encode()
        case "smtp":
            return UPGRADE_LINE
        case "ssh":
            return b"SSH-2.0-x\r\n"
        case _:
            return b"\x80\x01\x02"


class Played:
    """A flow in the gate's mind, and the world around it as far as it asks for it."""

    health = type("Health", (), {"off": False, "recording": True, "signing": True})()
    terms = Terms(on_failure=OnFailure.CLOSED, capture=True)

    def __init__(self, policy: Policy, flow: dict[str, Any], draw: random.Random) -> None:
        self._draw, self._flow = draw, flow
        self._remote = Endpoint(address=flow["address"], port=flow["port"])
        decides: Any = policy
        if flow["direction"] == "inbound":  # the service is ours, and the address the peer's
            decides = Inward(policy, self._remote)
        self.mind = Flow("f", self.terms, decides, Names(), self.health, Learned())
        if flow["direction"] == "inbound":
            self.mind.about.direction = Direction.INBOUND
        self.done: list[str] = []  # what was done to its bytes
        self._dialled = False

    def play(self) -> None:
        flow = self._flow
        origin = s.Origin(remote=self._remote, pid=7, uid=1000, comm="x")
        self.tell(s.Accepted(CLIENT, GATE, origin, float(flow["at_s"])))
        exe, user = flow["exe"], flow["user"]
        self.tell(s.OwnerKnown(Process(pid=7, exe=exe, name="x", user=user, confidence=Confidence.KERNEL)))
        if flow["spoken"] == "greeted":
            return self._greeted()
        self._maybe_connected()
        data = bytes_of(flow)
        if self._draw.random() < 0.3:
            self.tell(s.FirstBytes(data[: self._draw.randrange(1, len(data))]))
            self._maybe_connected()
        self.tell(s.FirstBytes(data))
        self._connected()

    def _greeted(self) -> None:
        """Its client waits, so the gate has to contact the server before it can know, unless nobody may be."""
        if not self._dialled:
            self.tell(s.Deadline())
        self._connected()
        self.tell(s.ServerSpoke(GREETING))

    def upgrade(self, flow: dict[str, Any]) -> None:
        """The worker has let go: both ends have agreed to TLS."""
        self.done.clear()
        self.tell(s.WorkerUpgrades(Upgrading(flow="f", bytes_sent=1, bytes_received=1)))
        self.tell(s.FirstBytes(HELLOS[flow["name"], flow["alpn"]]))

    def _maybe_connected(self) -> None:
        if self._draw.random() < 0.5:
            self._connected()

    def _connected(self) -> None:
        if self._dialled:
            self._dialled = False
            self.tell(s.Dialled(self._remote))

    def tell(self, event: s.AnyEvent) -> None:
        for command in self.mind.told(event, 0.0):
            match command:
                case s.Dial():
                    self._dialled = True
                case s.Staff():
                    self.tell(s.Staffed(1))
                case s.Hand():
                    self.done.append("read")
                case s.Relay():
                    self.done.append("relayed")
                case s.Reset() | s.Page():
                    self.done.append("refused")
                case _:
                    pass

    def end(self) -> None:
        if self.mind.state is State.HANDED:
            self.tell(s.WorkerSaid(FlowEnded(flow="f", bytes_sent=1, bytes_received=1, outcome="completed")))


def due(action: str, protocol: str) -> str:
    """What the interface's table of actions says is done."""
    if action == "decrypt":
        return "read" if protocol in READ else "relayed"
    return "refused" if action == "block" else "relayed"


def test_of_a_hundred_thousand_flows_exactly_those_are_decrypted_that_the_policy_says() -> None:
    draw, pairs, found = random.Random(20261130), 0, Counter[tuple[str, str]]()
    for _ in range(POLICIES):
        written, policy = drawn_policy(draw)
        for flow in (drawn_flow(draw) for _ in range(FLOWS_EACH)):
            played = Played(policy, flow, draw)
            played.play()
            wanted = due(said(written, flow), flow["protocol"])
            assert played.done == [wanted], (written, flow)
            found[flow["protocol"], wanted] += 1
            pairs += 1
            if wanted == "read" and flow["protocol"] == "smtp" and flow["direction"] == "outbound":
                upgraded = _with_hello(draw, flow | {"name": draw.choice(NAMES)})
                played.upgrade(upgraded)
                wanted = due(said(written, upgraded), "tls")
                assert played.done == [wanted], (written, upgraded)
                found["upgrade", wanted] += 1
            played.end()
    assert pairs == 100_000
    kinds = [*((one, "read") for one in READ), ("upgrade", "read"), ("upgrade", "relayed"), ("upgrade", "refused")]
    kinds += [(one, other) for one in ("tls", "http", "smtp", "ssh", "tcp") for other in ("relayed", "refused")]
    assert {kind: found[kind] for kind in kinds if found[kind] < 100} == {}, "each happens, and often"
