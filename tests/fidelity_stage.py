"""Policies as they are written, flows as they come, and what the words of the interface say must become of them.

A policy is drawn as it is written, becomes TOML, and is read as every policy file is. What must become of a flow is
read off what was written, by `said` below: it shares no code with the product.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from hellos import alpn, hello, server_name
from msgspec.structs import replace

from mitmsec.config import PolicyErrors, parse_policy, zone_data
from mitmsec.core.model import Confidence, ParentProcess, Process
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import Sniffed, first_bytes

NOON_S = 1_767_610_800  # Monday, 5 January 2026, 11:00 UTC
HOSTS = ("bank.example", "www.bank.example", "a.b.bank.example", "notbank.example", "evil.test", "x.evil.test", "test")
CATEGORIES = {"finance": "paypal.com", "webmail": "gmx.net"}  # with a name of each shipped list
LISTED = ("bank.example", "evil.test")
WEEKS = {
    "Mon-Fri 08:00-18:00 UTC": lambda at: at.weekday() < 5 and 8 <= at.hour < 18,
    "Sat,Sun UTC": lambda at: at.weekday() >= 5,
    "22:00-06:00 UTC": lambda at: at.hour >= 22 or at.hour < 6,
}
APPLICATIONS = """
[[application]]
name = "browsers"
path = ["/usr/lib/firefox/*"]
[[application]]
name = "of a browser"
path = ["/usr/lib/firefox/*"]
children = true
[[application]]
name = "this very file"
sha256 = ["%s"]
[[application]]
name = "backups"
service = ["backup-*.service"]
[[application]]
name = "boxed"
container = ["c0ffee123456"]
[[application]]
name = "that tree"
pid = [70]
children = true
[[application]]
name = "joe's curl"
user = ["joe"]
process_name = ["cur?"]
""" % ("ab" * 32)  # fmt: skip


def process(exe: str | None, **facts: Any) -> Process:
    name = (exe or "?").rpartition("/")[2]
    known = {"pid": 7, "sha256": "00" * 32, "name": name, "parent": ParentProcess(pid=1, exe="/sbin/init")}
    return Process(exe=exe, confidence=Confidence.KERNEL, **known | facts)


BROWSER = ParentProcess(pid=70, exe="/usr/lib/firefox/firefox", parent=ParentProcess(pid=1, exe="/sbin/init"))
CONTAINER = f"docker:c0ffee123456{'0' * 52}"
PROGRAMS: tuple[tuple[Process, set[str]], ...] = (  # and which of these applications it is one of, whoever runs it
    (process("/usr/lib/firefox/firefox"), {"browsers", "of a browser"}),
    (process("/usr/lib/firefox/firefox", container=CONTAINER), {"browsers", "of a browser", "boxed"}),
    (process("/opt/sync/sync", parent=BROWSER), {"of a browser", "that tree"}),
    (process("/opt/sync/sync", pid=70, unit="backup-home.service"), {"that tree", "backups"}),
    (process("/usr/bin/curl"), set()),
    (process("/usr/bin/curl", sha256="ab" * 32, unit="backup.service"), {"this very file"}),
    (process(None, claimed_exe="/usr/lib/firefox/firefox", container=f"podman:{'c' * 64}"), set()),  # of a fake root
)
UPGRADE_LINE = b"EHLO me.example\r\n"
ELSEWHERE = "203.0.113.9"  # to where a proxy is asked to lead, where it is no name
NAMED = tuple(re.findall(r'^name = "(.+)"', APPLICATIONS, re.MULTILINE))
PROTOCOLS = ("tls", "http", "smtp", "ssh", "tcp", "http-proxy", "socks")
REFUSED = ("can never match", "wanted among these", "none of these shows a name")  # rules that no file may have
READ = {"tls", "http", "smtp", "http-proxy", "socks"}  # what decrypting makes readable; the rest is as `capture`


# --- hellos and places ------------------------------------------------------------------------------------------------
def tls_of(name: str | None, offers: tuple[str, ...], *, ech: bool = False) -> bytes:
    extensions = [server_name(name.encode())] if name is not None else []
    extensions += [alpn(*(offer.encode() for offer in offers))] if offers else []
    return hello(*extensions, *([(0xFE0D, bytes(80))] if ech else []))


def ja4_of(name: str | None, offers: tuple[str, ...], *, ech: bool = False) -> str:
    sniffed = first_bytes(tls_of(name, offers, ech=ech))
    assert isinstance(sniffed, Sniffed)
    assert sniffed.hello is not None
    return sniffed.hello.ja4


OFFERS: tuple[tuple[str, ...], ...] = ((), ("h2", "http/1.1"), ("http/1.1",))
NAMES = (None, *HOSTS, *(f"www.{name}" for name in CATEGORIES.values()), "WWW.Bank.Example", "Evil.TEST")
JA4 = {(name, offers): ja4_of(name, offers) for name in NAMES for offers in OFFERS}
JA4_ECH = {key: ja4_of(*key, ech=True) for key in JA4}
HELLOS = {(*key, ech): tls_of(*key, ech=ech) for key in JA4 for ech in (True, False)}


@dataclass(frozen=True)
class Ground:
    """Where flows go and what their hellos look like, and what rules say of that."""

    addresses: tuple[str, ...] = ("192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::7")
    ports: tuple[int, ...] = (25, 80, 443, 8443)
    written_addresses: tuple[str, ...] = ("192.0.2.0/25", "192.0.2.0/24", "198.51.100.7", "2001:db8::/32")
    written_ports: tuple[int | str, ...] = (443, "20-100", "8000-9000")
    spoken: tuple[str, ...] = ("tls", "tls", "tls", "http", "smtp", "greeted", "ssh", "tcp", "http-proxy", "socks")
    inbound: float = 0.1  # how many of the flows are
    encrypted: float = 0.2  # how many of the hellos have another within
    ja4: dict[tuple[str | None, tuple[str, ...]], str] = field(default_factory=lambda: JA4)

    def ja4_globs(self) -> tuple[str, ...]:
        return "t1*", f"{self.ja4[None, OFFERS[0]][:8]}*", self.ja4["test", OFFERS[1]]


ANYWHERE = Ground()


# --- what is written, and what that says ------------------------------------------------------------------------------
def drawn_rule(draw: random.Random, number: int, ground: Ground) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": f"rule {number}", "action": draw.choice(["decrypt", "bypass", "block", "capture"])}
    if draw.random() < 0.15:
        rule["direction"] = "inbound"
        rule["action"] = draw.choice(["bypass", "block", "capture"])  # no service's key is known
    choices: dict[str, list[Any]] = {
        "application": ["/usr/bin/*", "/opt/sync/sync", *NAMED],
        "user": ["joe", "4242"],
        "port": list(ground.written_ports),
        "address": list(ground.written_addresses),
        "time": list(WEEKS),
    }
    if "direction" not in rule:
        hosts = [mark + name for mark in ("", "*.") for name in HOSTS]
        choices |= {
            "host": [*hosts, "@names.txt", "Bank.EXAMPLE"],
            "alpn": ["h2", "http/*"],
            "ja4": list(ground.ja4_globs()),
        }
        choices |= {"category": list(CATEGORIES), "protocol": list(PROTOCOLS)}
    for key, values in choices.items():
        if draw.random() < {"host": 0.35, "protocol": 0.3}.get(key, 0.18):
            rule[key] = draw.sample(values, draw.randint(1, 2))
    if "direction" not in rule and draw.random() < 0.1:
        rule["ech"] = draw.random() < 0.7
    if draw.random() < 0.2:
        rule["expires"] = datetime.fromtimestamp(NOON_S + draw.randint(-9, 9) * 3600, UTC)
    if "direction" not in rule and rule["action"] == "decrypt":
        rule |= drawn_learning(draw, 0.2)
    return rule


def drawn_learning(draw: random.Random, often: float) -> dict[str, Any]:
    """What is said of what may be learned, or is not."""
    choices = {"learned_bypass": [0, 1, 2], "on_certificate_request": ["block", "bypass"]}
    return {key: draw.choice(values) for key, values in choices.items() if draw.random() < often}


def drawn_policy(draw: random.Random, ground: Ground = ANYWHERE) -> tuple[dict[str, Any], Policy]:
    """As it is written, and as it is read."""
    while True:
        written = {
            "action": draw.choice(["decrypt", "decrypt", "bypass", "block", "capture"]),
            "inbound": draw.choice(["bypass", "block", "capture"]),
            "rules": [drawn_rule(draw, number, ground) for number in range(draw.randint(1, 7))],
            "learning": drawn_learning(draw, 0.5),
        }
        try:
            return written, read(written)
        except PolicyErrors as errors:
            if not any(one in str(errors) for one in REFUSED):
                raise


def read(written: dict[str, Any]) -> Policy:
    defaults = {key: written[key] for key in ("action", "inbound")} | written["learning"]
    lines = ["version = 1", "[defaults]", *(f"{key} = {json.dumps(value)}" for key, value in defaults.items())]
    lines.append(APPLICATIONS)
    for rule in written["rules"]:
        lines.append("[[rule]]")
        for key, value in rule.items():
            lines.append(f"{key} = {value.isoformat() if isinstance(value, datetime) else json.dumps(value)}")
    names = "\n".join(LISTED)
    return parse_policy("\n".join(lines), file="drawn", read_list=lambda name: names, zone=zone_data)


def said(written: dict[str, Any], flow: dict[str, Any]) -> str:
    """The action, by the words of the interface: that of the first rule whose conditions hold, else the defaults'."""
    rule = rule_of(written, flow)
    return str(rule["action"] if rule else written["action" if flow["direction"] == "outbound" else "inbound"])


def rule_of(written: dict[str, Any], flow: dict[str, Any]) -> dict[str, Any] | None:
    """The first rule all of whose conditions hold."""
    for rule in written["rules"]:
        conditions = {key: value for key, value in rule.items() if key in HOLDS}
        if rule.get("direction", "outbound") == flow["direction"] and all(
            HOLDS[key](value, flow) for key, value in conditions.items()
        ):
            return dict(rule)
    return None


def is_named(written: str, name: str) -> bool:
    if written.startswith("@"):
        return any(name == one or name.endswith("." + one) for one in LISTED)
    return name.endswith(written[1:]) if written.startswith("*.") else name == written


def applications_of(flow: dict[str, Any]) -> set[str]:
    joes = {"joe's curl"} if (flow["exe"], flow["user"]) == ("/usr/bin/curl", "joe") else set()
    return PROGRAMS[flow["program"]][1] | joes


def is_port(written: int | str, port: int) -> bool:
    low, _, high = str(written).partition("-")
    return int(low) <= port <= int(high or low)


HOLDS: dict[str, Any] = {
    "application": lambda v, f: any(one in applications_of(f) or fnmatchcase(f["exe"] or "", one) for one in v),
    "user": lambda v, f: f["user"] in v,
    "host": lambda v, f: f["name"] is not None and any(is_named(one.lower(), f["name"].lower()) for one in v),
    "category": lambda v, f: f["name"] is not None and any(f["name"].endswith("." + CATEGORIES[one]) for one in v),
    "port": lambda v, f: any(is_port(one, f["port"]) for one in v),
    "address": lambda v, f: any(ipaddress.ip_address(f["address"]) in ipaddress.ip_network(one) for one in v),
    "protocol": lambda v, f: f["protocol"] in v,
    "alpn": lambda v, f: any(fnmatchcase(offer, one) for one in v for offer in f["alpn"]),
    "ja4": lambda v, f: f["ja4"] is not None and any(fnmatchcase(f["ja4"], one) for one in v),
    "ech": lambda v, f: f["ech"] is v,
    "time": lambda v, f: any(WEEKS[one](datetime.fromtimestamp(f["at_s"], UTC)) for one in v),
    "expires": lambda v, f: f["at_s"] < v.timestamp(),
}


# --- flows ------------------------------------------------------------------------------------------------------------
def drawn_flow(draw: random.Random, ground: Ground = ANYWHERE) -> dict[str, Any]:
    spoken, program = draw.choice(ground.spoken), draw.randrange(len(PROGRAMS))
    flow: dict[str, Any] = {
        "direction": "inbound" if draw.random() < ground.inbound else "outbound",
        "spoken": spoken,
        "protocol": "smtp" if spoken == "greeted" else spoken,
        "program": program,
        "exe": PROGRAMS[program][0].exe,
        "user": draw.choice(["joe", "root", "4242"]),
        "address": draw.choice(ground.addresses),
        "port": draw.choice(ground.ports),
        "at_s": NOON_S + draw.choice([draw.randint(-9, 9) * 3600, draw.randint(-604800, 604800)]),
        "name": draw.choice(NAMES) if spoken in ("tls", "http", "http-proxy") else None,
        "alpn": (),
        "ja4": None,
        "ech": None,
    }
    return with_hello(draw, flow, ground) if spoken == "tls" else flow


def owner_of(flow: dict[str, Any]) -> Process:
    return replace(PROGRAMS[flow["program"]][0], user=flow["user"])


def in_tunnel(draw: random.Random, flow: dict[str, Any], ground: Ground = ANYWHERE) -> dict[str, Any]:
    """What is spoken through the proxy to which `flow` goes."""
    spoken = draw.choice(("tls", "http", "smtp", "greeted", "ssh", "tcp"))
    name = draw.choice(NAMES) if spoken in ("tls", "http") else None
    led = (flow["name"] or ELSEWHERE) if flow["spoken"] == "http-proxy" else None
    inner = flow | {"spoken": spoken, "protocol": "smtp" if spoken == "greeted" else spoken, "name": name, "led": led}
    return with_hello(draw, inner, ground) if spoken == "tls" else inner


def with_hello(draw: random.Random, flow: dict[str, Any], ground: Ground = ANYWHERE) -> dict[str, Any]:
    offers, ech = draw.choice(OFFERS), draw.random() < ground.encrypted
    ja4 = JA4_ECH if ech else ground.ja4
    return flow | {"alpn": offers, "ja4": ja4[flow["name"], offers], "ech": ech}


def bytes_of(flow: dict[str, Any]) -> bytes:
    match flow["spoken"]:
        case "tls":
            return HELLOS[flow["name"], flow["alpn"], flow["ech"]]
        case "http":
            host = f"Host: {flow['name']}\r\n" if flow["name"] else ""
            return f"GET / HTTP/1.1\r\n{host}\r\n".encode()
        case "http-proxy":
            return "CONNECT {0}:443 HTTP/1.1\r\nHost: {0}:443\r\n\r\n".format(flow["name"] or ELSEWHERE).encode()
        case "socks":
            return b"\x05\x01\x00"
        case "smtp":
            return UPGRADE_LINE
        case "ssh":
            return b"SSH-2.0-x\r\n"
        case _:
            return b"\x80\x01\x02"


def due(action: str, protocol: str) -> str:
    """What the interface's table of actions says is done."""
    if action == "decrypt":
        return "read" if protocol in READ else "relayed"
    return "refused" if action == "block" else "relayed"
