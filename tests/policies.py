"""Policies and flows for tests: small ones by hand, any others by Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from mitmsec.core.model import Action, Endpoint, ParentProcess, Process
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import WITH_NAME, Protocol, Shown

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

NAMES = ("a.example", "b.a.example", "c.b.a.example", "example", "other.test")
ADDRESSES = ("192.0.2.1", "198.51.100.1", "2001:db8::1", "")
PORTS = (22, 80, 443, 8443)

patterns = st.builds(lambda mark, name: mark + name, st.sampled_from(["", "*.", "."]), st.sampled_from(NAMES))
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
    host=some(patterns),
    port=some(ranges),
    address=some(st.sampled_from(["192.0.2.0/24", "198.51.100.1/32", "2001:db8::/32", "0.0.0.0/0"])),
    user=st.one_of(st.just(()), some(st.sampled_from(["root", "joe", "1000"]))),
    protocol=st.one_of(st.just(()), some(st.sampled_from(Protocol))),
    alpn=st.one_of(st.just(()), some(st.sampled_from(["h2", "http/*", "?2"]))),
    ja4=st.one_of(st.just(()), some(st.sampled_from(["t13d*", "t12d_x", "*_x"]))),
)


def numbered(found: list[Rule]) -> Policy:
    named = [
        Rule(**{field: getattr(rule, field) for field in rule.__struct_fields__} | {"name": f"rule {number}"})
        for number, rule in enumerate(found)
    ]
    return Policy(applications=APPLICATIONS, rules=tuple(named), action=Action.BYPASS)


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
)
_named = st.builds(Shown, protocol=st.sampled_from(sorted(WITH_NAME - {Protocol.TLS})), name=names)
_others = st.builds(Shown, protocol=st.sampled_from(sorted(set(Protocol) - WITH_NAME)))
shows = st.one_of(_hellos, _named, _others)
"""All that can be shown."""
