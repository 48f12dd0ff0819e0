"""Policies and flows for tests: small ones by hand, any others by Hypothesis."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from hypothesis import strategies as st

from mitmsec.core.host_lists import HostList
from mitmsec.core.model import Action, Endpoint, ParentProcess, Process
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import OVER_TCP, WITH_NAME, Protocol, Shown

FIREFOX = Process(pid=7, exe="/usr/lib/firefox/firefox", name="firefox", user="joe", sha256="ab" * 32)
CURL = Process(pid=8, exe="/usr/bin/curl", name="curl", user="root")
UNKNOWN = Process(pid=9)
HELPER = Process(pid=10, exe="/opt/helper", name="helper", parent=ParentProcess(pid=7, exe="/usr/lib/firefox/firefox"))
PROCESSES = (FIREFOX, CURL, UNKNOWN, HELPER)
NGINX = Process(pid=11, exe="/usr/bin/nginx", name="nginx", user="root", unit="nginx.service")
BOXED = Process(pid=12, claimed_exe="/usr/bin/nginx", name="nginx", user="root", container=f"docker:{'cd' * 32}")
OTHER_CURL = Process(pid=13, exe="/usr/bin/curl", name="curl", user="root")  # differs from CURL in nothing but its pid

APPLICATIONS = (
    Application(name="browsers", path=("/usr/lib/firefox/*",), children=True),
    Application(name="root's", user=("root",)),
    Application(name="web", service=("nginx.*", "windows:W3SVC")),
    Application(name="boxes", container=("cd" * 6, "podman:*")),
    Application(name="those", pid=(7, 13), children=True),
)


def zone(rule: str) -> bytes:
    """TZif data that follow a rule as POSIX writes them (RFC 8536)."""
    block = b"TZif2" + bytes(15) + struct.pack(">6L", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
    return block + block + f"\n{rule}\n".encode()


BERLIN = zone("CET-1CEST,M3.5.0,M10.5.0/3")
ZONES = (("Europe/Berlin", BERLIN), ("local", zone("<+05>-5")))
NOON_S = 1_767_610_800.0  # Monday, 5 January 2026, 11:00 UTC: 12:00 in Berlin, 16:00 local
HOUR_S = 3600
TIMES = ("Mon-Fri 08:00-18:00 UTC", "Sat,Sun", "22:00-06:00 Europe/Berlin", "Sun-Tue 23:30-00:30 Europe/Berlin")
NAMES = ("a.example", "b.a.example", "c.b.a.example", "example", "other.test")
ADDRESSES = ("192.0.2.1", "198.51.100.1", "2001:db8::1", "")
PORTS = (22, 80, 443, 8443)

LISTS = (
    HostList.of("@one", "a.example\nother.test\na.example"),
    HostList.of("@two", "b.a.example\nnobody.test"),
    HostList.of("@three", "example\nother.test\nb.a.example"),
    HostList.of("category:finance", "other.test\nc.b.a.example"),
)

patterns = st.builds(lambda mark, name: mark + name, st.sampled_from(["", "*."]), st.sampled_from(NAMES))
_files = st.sampled_from([one.name for one in LISTS[:3]])
ranges = st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda ends: (min(ends), max(ends)))


def some[T](values: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.one_of(st.just(()), st.lists(values, min_size=1, max_size=3).map(tuple))


rules = st.builds(
    Rule,
    name=st.just("?"),
    action=st.sampled_from(Action),
    application=some(
        st.sampled_from(["browsers", "root's", "web", "boxes", "those", "/usr/*", "*/curl", "/opt/helper"])
    ),
    host=some(st.one_of(patterns, _files)),
    category=st.one_of(st.just(()), st.just(()), st.just(("finance",))),
    port=some(ranges),
    address=some(st.sampled_from(["192.0.2.0/24", "198.51.100.1/32", "2001:db8::/32", "0.0.0.0/0"])),
    user=st.one_of(st.just(()), some(st.sampled_from(["root", "joe", "1000"]))),
    protocol=st.one_of(st.just(()), some(st.sampled_from(Protocol))),
    alpn=st.one_of(st.just(()), some(st.sampled_from(["h2", "http/*", "?2"]))),
    ja4=st.one_of(st.just(()), some(st.sampled_from(["t13d*", "t12d_x", "*_x"]))),
    ech=st.sampled_from([(), (), (), (True,), (False,)]),
    time=st.one_of(st.just(()), some(st.sampled_from(TIMES))),
    expires_s=st.one_of(st.none(), st.integers(-30, 30).map(lambda hours: int(NOON_S) + hours * HOUR_S)),
)


def numbered(found: list[Rule]) -> Policy:
    named = [
        Rule(**{field: getattr(rule, field) for field in rule.__struct_fields__} | {"name": f"rule {number}"})
        for number, rule in enumerate(found)
    ]
    return Policy(applications=APPLICATIONS, rules=tuple(named), action=Action.BYPASS, zones=ZONES, lists=LISTS)


policies = st.lists(rules, max_size=6).map(numbered)
processes = st.sampled_from((*PROCESSES, NGINX, BOXED, OTHER_CURL))
endpoints = st.builds(Endpoint, address=st.sampled_from(ADDRESSES), port=st.sampled_from(PORTS))
names = st.one_of(st.none(), st.sampled_from(NAMES))
_hellos = st.builds(
    Shown,
    protocol=st.just(Protocol.TLS),
    name=names,
    alpn=st.sampled_from([(), ("h2",), ("h2", "http/1.1"), ("x",)]),
    ja4=st.sampled_from(["t13d_x", "t12d_x", "t13i_y"]),
    ech=st.booleans(),
)
_named = st.builds(Shown, protocol=st.sampled_from(sorted(WITH_NAME & OVER_TCP - {Protocol.TLS})), name=names)
_others = st.builds(Shown, protocol=st.sampled_from(sorted(OVER_TCP - WITH_NAME)))
moments = st.one_of(st.just(NOON_S), st.integers(-60 * 168, 60 * 168).map(lambda minutes: NOON_S + minutes * 60))
"""Within a week of noon."""
shows = st.one_of(_hellos, _named, _others)
"""All that can be shown over TCP."""


# --- the same, drawn by the thousand ----------------------------------------------------------------------------------
def drawn(draw: random.Random) -> Policy:
    """A policy of one to eight rules; a condition is there as often as not, and a rule has few of them."""
    made = [_drawn_rule(draw) for _ in range(draw.randint(1, 8))]
    return numbered(made)


def _drawn_rule(draw: random.Random) -> Rule:
    def some_of[T](values: Sequence[T]) -> tuple[T, ...]:
        return tuple(draw.sample(values, draw.randint(1, 2))) if draw.random() < 0.25 else ()

    low, high = sorted(draw.choices(PORTS, k=2))
    return Rule(
        name="?",
        action=draw.choice(list(Action)),
        application=some_of(["browsers", "root's", "web", "boxes", "/usr/*", "*/curl", "/opt/helper"]),
        host=some_of([*(mark + name for mark in ("", "*.") for name in NAMES), "@one", "@two", "@three"]),
        category=draw.choice([(), (), ("finance",)]),
        port=((low, high),) if draw.random() < 0.3 else (),
        address=some_of(["192.0.2.0/24", "198.51.100.1/32", "2001:db8::/32", "0.0.0.0/0"]),
        user=some_of(["root", "joe"]),
        protocol=some_of(list(Protocol)),
        alpn=some_of(["h2", "http/*", "?2"]),
        ja4=some_of(["t13d*", "t12d_x", "*_x"]),
        ech=some_of([True, False])[:1],
        time=some_of(TIMES),
        expires_s=int(NOON_S) + draw.randint(-30, 30) * HOUR_S if draw.random() < 0.2 else None,
    )


def drawn_flow(draw: random.Random) -> tuple[Process, Endpoint, float, Shown]:
    protocol = draw.choice([Protocol.TLS, Protocol.TLS, *sorted(OVER_TCP)])
    is_tls = protocol is Protocol.TLS
    shown = Shown(
        protocol=protocol,
        name=draw.choice([None, *NAMES]) if protocol in WITH_NAME else None,
        alpn=draw.choice([(), ("h2",), ("h2", "http/1.1"), ("x",)]) if is_tls else (),
        ja4=draw.choice(["t13d_x", "t12d_x", "t13i_y"]) if is_tls else None,
        ech=draw.random() < 0.3 if is_tls else None,
    )
    remote = Endpoint(address=draw.choice(ADDRESSES), port=draw.choice(PORTS))
    return draw.choice((*PROCESSES, NGINX, BOXED)), remote, NOON_S + draw.randint(-10080, 10080) * 60, shown
