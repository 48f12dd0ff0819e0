"""How long one decision takes: 1,000 rules with every condition of the language, and 100,000 flows that they sort.

    python -m benchmarks.deciding [RULES]

Prints, for both questions of the policy, how much of the processor a flow takes (p50, p99, the worst): the first time,
while programs, names, addresses and fingerprints are met that nobody has seen, and then once more.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence

from mitmsec.core.hours import Zones
from mitmsec.core.model import Action, Endpoint, Process
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import WITH_NAME, Protocol, Shown

RULES, FLOWS, FINGERPRINTS = 1000, 100_000, 200
AT_S = 1_767_610_800
TIMES = ("Mon-Fri 08:00-18:00 UTC", "Sat,Sun UTC", "22:00-06:00 UTC")
ZONES: Zones = ()

type Flow = tuple[Process, Endpoint, float, Shown]


def made_rule(draw: random.Random, number: int) -> Rule:
    """Each condition is there in a third of the rules, and few rules take a given flow."""

    def some[Item](item: Item) -> tuple[Item, ...]:
        return (item,) if draw.random() < 0.33 else ()

    port = draw.randint(1, 60_000)
    return Rule(
        name=f"rule {number}",
        action=draw.choice(list(Action)),
        application=some(f"program {draw.randint(0, 49)}"),
        user=some(f"user{draw.randint(0, 9)}"),
        host=(f"*.site{number}.example", f"site{number}.test"),
        port=some((port, port + 500)),
        address=some(f"10.{draw.randint(0, 255)}.0.0/16"),
        protocol=some(draw.choice(list(Protocol))) if number % 3 == 0 else (),
        alpn=some(draw.choice(["h2", "http/*"])),
        ja4=some(f"t13d{draw.randint(10, 99)}*"),
        time=some(draw.choice(TIMES)),
        expires_s=AT_S + draw.randint(-(10**6), 10**6) if draw.random() < 0.33 else None,
    )


def made_policy(draw: random.Random, rules: int) -> Policy:
    """Every tenth rule asks for no name."""
    made = [made_rule(draw, number) for number in range(rules)]
    unnamed = [rule if number % 10 else _without_host(rule) for number, rule in enumerate(made)]
    applications = tuple(Application(name=f"program {n}", path=(f"/opt/{n}/*",)) for n in range(50))
    return Policy(applications=applications, rules=tuple(unnamed), zones=ZONES)


def _without_host(rule: Rule) -> Rule:
    conditions = {field: getattr(rule, field) for field in rule.__struct_fields__} | {"host": ()}
    return Rule(**{**conditions, "user": ("nobody", *rule.user)})


def made_flow(draw: random.Random, number: int, rules: int) -> Flow:
    program, user = draw.randint(0, 39), draw.randint(0, 9)
    process = Process(pid=number, exe=f"/opt/{program}/x", name="x", user=f"user{user}")
    remote = Endpoint(address=f"10.{draw.randint(0, 255)}.{draw.randint(0, 3)}.1", port=draw.randint(1, 65_535))
    protocol = draw.choice([Protocol.TLS] * 8 + list(Protocol))
    is_tls = protocol is Protocol.TLS
    shown = Shown(
        protocol=protocol,
        name=f"www.site{draw.randint(0, 2 * rules)}.example" if protocol in WITH_NAME else None,
        alpn=draw.choice([(), ("h2", "http/1.1"), ("http/1.1",)]) if is_tls else (),
        ja4=f"t13d{draw.randint(0, FINGERPRINTS)}h2_x" if is_tls else None,
    )
    return process, remote, AT_S + number * 0.05, shown


def timed(question: Callable[[Flow], object], flows: Sequence[Flow]) -> list[float]:
    """Microseconds of the processor that each took."""
    took_us = []
    for flow in flows:
        began_ns = time.thread_time_ns()
        question(flow)
        took_us.append((time.thread_time_ns() - began_ns) / 1000)
    return took_us


def told(what: str, took_us: list[float]) -> str:
    ordered = sorted(took_us)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"{what:<17} p50 {p50:5.1f} us   p99 {p99:5.1f} us   worst {ordered[-1]:8.1f} us"


def main(rules: int = RULES) -> None:
    draw = random.Random(1)
    policy = made_policy(draw, rules)
    flows = [made_flow(draw, number, rules) for number in range(FLOWS)]
    began_s = time.perf_counter()
    process, remote, at_s, _ = flows[0]
    policy.at_connect(process, remote, at_s)
    print(f"{rules} rules arranged in {(time.perf_counter() - began_s) * 1000:.0f} ms, {FLOWS} flows")
    for which in ("new", "known"):
        connects = timed(lambda flow: policy.at_connect(*flow[:3]), flows)
        hellos = timed(lambda flow: policy.at_hello(*flow[:3], shown=flow[3]), flows)
        print(told(f"at_connect, {which}", connects))
        print(told(f"at_hello, {which}", hellos))
    decided = {policy.at_hello(*flow[:3], shown=flow[3]).rule for flow in flows}
    print(f"{len(decided)} rules decided")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
