"""An explanation tells the same story as the decision, and why."""

from __future__ import annotations

import policies
from hypothesis import given
from policies import NOON_S

from mitmsec.core.explain import Checked, explain
from mitmsec.core.host_lists import HostList
from mitmsec.core.known_service import KnownService
from mitmsec.core.model import Action, Direction, Endpoint, Process
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import NOTHING_SHOWN, Protocol, Shown


@given(policies.policies, policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_the_story_ends_as_the_gate_decides(
    policy: Policy, process: Process, remote: Endpoint, shown: Shown, at_s: float
) -> None:
    story = explain(policy, process, remote, at_s, shown)
    assert story.decision == policy.at_hello(process, remote, at_s, shown=shown)
    assert story.needs_name is (policy.at_connect(process, remote, at_s) is None)
    assert len(story.tried) == len(policy.rules)
    deciders = [tried.rule for tried in story.tried if tried.decided]
    assert deciders == ([] if story.decision.rule == "defaults" else [story.decision.rule])


def test_each_condition_says_why() -> None:
    rule = Rule(
        name="r",
        action=Action.BLOCK,
        application=("browsers", "/x"),
        host=("*.a.example", "@one", "c", "d", "e", "f"),
        port=((22, 22), (8000, 8999)),
        address=("192.0.2.0/24",),
    )
    lists = (HostList.of("@one", "b.example"),)
    policy = Policy(applications=policies.APPLICATIONS, rules=(rule,), lists=lists)

    def checked(process: Process, address: str, port: int, name: str | None) -> tuple[Checked, ...]:
        return (
            explain(policy, process, Endpoint(address=address, port=port), NOON_S, Shown.of(name)).tried[0].conditions
        )

    hosts = "*.a.example, @one, c, d, e and 1 more"
    assert [(check.holds, check.why) for check in checked(policies.CURL, "198.51.100.1", 443, "x.test")] == [
        (False, "/usr/bin/curl is none of browsers, /x"),
        (False, f"x.test is not within {hosts}"),
        (False, "443 is none of 22, 8000-8999"),
        (False, "198.51.100.1 is not within 192.0.2.0/24"),
    ]
    assert [(check.holds, check.why) for check in checked(policies.FIREFOX, "192.0.2.9", 8080, "b.example")] == [
        (True, "/usr/lib/firefox/firefox is one of browsers"),
        (True, "b.example is within b.example (from the list @one)"),
        (True, "8080 is one of 22, 8000-8999"),
        (True, "192.0.2.9 is within 192.0.2.0/24"),
    ]
    assert [check.why for check in checked(policies.UNKNOWN, "", 22, None)] == [
        "a program whose path is not known is none of browsers, /x",
        "the flow shows no name",
        "22 is one of 22, 8000-8999",
        "no address is given to compare with 192.0.2.0/24",
    ]


def test_a_port_is_told_as_it_was_written() -> None:
    def told(ports: tuple[int, int], port: int) -> str:
        policy = Policy(rules=(Rule(name="r", action=Action.BLOCK, port=(ports,)),))
        return (
            explain(policy, policies.CURL, Endpoint(address="", port=port), NOON_S, NOTHING_SHOWN)
            .tried[0]
            .conditions[0]
            .why
        )

    assert [told((80, 80), 443), told((80, 80), 80)] == ["443 is not 80", "it is 80"]
    assert [told((80, 90), 443), told((80, 90), 85)] == ["443 is not within 80-90", "85 is within 80-90"]


def test_units_containers_and_pids_that_fail_are_named() -> None:
    applications = (
        Application(name="web", service=("nginx.service", "apache2.*"), container=("docker:*",)),
        Application(name="that", pid=(7,)),
    )
    policy = Policy(
        applications=applications, rules=(Rule(name="r", action=Action.BLOCK, application=("web", "that")),)
    )

    def told(process: Process) -> str:
        return (
            explain(policy, process, Endpoint(address="", port=443), NOON_S, NOTHING_SHOWN).tried[0].conditions[0].why
        )

    assert told(Process(pid=0, exe="/x")) == (
        "/x is none of web (service is not known; container is not known), that (pid is not known)"
    )
    assert told(Process(pid=8, exe="/x", unit="a.scope", container="lxc:a")) == (
        "/x is none of web (service a.scope is none of nginx.service, apache2.*; container lxc:a is not docker:*), "
        "that (pid 8 is not 7)"
    )
    assert told(Process(pid=7, exe="/x")) == "/x is one of that"


def test_services_and_signers_that_fail_are_named() -> None:
    applications = (Application(name="a", service=("windows:x",), signer=("B",)),)
    policy = Policy(applications=applications, rules=(Rule(name="r", action=Action.BLOCK, application=("a",)),))
    process = Process(pid=8, exe="C:/x", services=("y", "z"), signer="CN=C")
    assert explain(policy, process, Endpoint(address="", port=443), NOON_S, NOTHING_SHOWN).tried[0].conditions[
        0
    ].why == ("C:/x is none of a (service windows:y, windows:z is not windows:x; signer CN=C is not B)")


def test_of_an_application_with_several_criteria_those_that_fail_are_named() -> None:
    applications = (
        Application(name="tool", path=("/usr/bin/*",), user=("joe", "ann"), sha256=("cd" * 32,)),
        Application(name="mine", process_name=("wget",)),
    )
    rule = Rule(name="r", action=Action.BLOCK, application=("tool", "mine", "/x"))
    policy = Policy(applications=applications, rules=(rule,))

    def told(process: Process) -> str:
        return (
            explain(policy, process, Endpoint(address="", port=443), NOON_S, NOTHING_SHOWN).tried[0].conditions[0].why
        )

    assert told(policies.CURL) == (
        "/usr/bin/curl is none of tool (user root is none of joe, ann; sha256 is not known), "
        "mine (process_name curl is not wget), /x"
    )
    found = told(Process(pid=1, exe="/opt/curl", name="curl", user="joe", sha256="cd" * 32))
    assert (
        found
        == "/opt/curl is none of tool (path /opt/curl is not /usr/bin/*), mine (process_name curl is not wget), /x"
    )


def test_a_rule_for_the_other_direction_says_that_it_is_one() -> None:
    rules = (
        Rule(name="in", action=Action.BYPASS, direction=Direction.INBOUND, port=((443, 443),)),
        Rule(name="out", action=Action.BLOCK),
    )
    policy, peer = Policy(rules=rules), Endpoint(address="192.0.2.1", port=443)

    def told(direction: Direction) -> list[tuple[str, bool, str]]:
        story = explain(policy, policies.CURL, peer, NOON_S, NOTHING_SHOWN, direction)
        conditions = [(tried.rule, check) for tried in story.tried for check in tried.conditions]
        return [(rule, check.holds, check.why) for rule, check in conditions if check.key == "direction"]

    assert told(Direction.INBOUND) == [
        ("in", True, "it is inbound"),
        ("out", False, "the rule is for outbound connections"),
    ]
    assert told(Direction.OUTBOUND) == [("in", False, "the rule is for inbound connections")]
    assert explain(policy, policies.CURL, peer, NOON_S, NOTHING_SHOWN, Direction.INBOUND).decision.rule == "in"
    assert explain(policy, policies.CURL, peer, NOON_S, NOTHING_SHOWN).decision.rule == "out"
    nowhere = explain(Policy(), policies.CURL, peer, NOON_S, NOTHING_SHOWN, Direction.INBOUND)
    assert (nowhere.decision.action, nowhere.needs_name) == (Action.BYPASS, False)


def test_an_incoming_connection_is_explained_with_the_service_whose_key_opens_it() -> None:
    policy = Policy(inbound=Action.DECRYPT, services=(KnownService(name="shop", names=("shop.example",)),))
    peer = Endpoint(address="192.0.2.7", port=443)

    def told(name: str | None) -> tuple[Action, str, bool]:
        story = explain(policy, policies.NGINX, peer, NOON_S, Shown.of(name), Direction.INBOUND)
        return story.decision.action, story.decision.service, story.needs_name

    assert told("shop.example") == (Action.DECRYPT, "shop", True)
    assert told("other.example") == (Action.BYPASS, "", True)
    assert told(None) == (Action.BYPASS, "", True)


def test_what_first_bytes_show_and_who_runs_the_program_is_told() -> None:
    rule = Rule(
        name="r",
        action=Action.BLOCK,
        user=("joe",),
        protocol=(Protocol.TLS, Protocol.SSH),
        alpn=("h2",),
        ja4=("t13*",),
        ech=(True,),
    )
    policy = Policy(rules=(rule,))

    def told(process: Process, shown: Shown) -> list[tuple[bool, str]]:
        story = explain(policy, process, Endpoint(address="", port=443), NOON_S, shown)
        return [(check.holds, f"{check.key}: {check.why}") for check in story.tried[0].conditions]

    assert told(policies.FIREFOX, Shown.of(None, alpn=("x", "h2"), ja4="t13d", ech=True)) == [
        (True, "user: it is joe"),
        (True, "protocol: it is tls"),
        (True, "alpn: h2 is within h2"),
        (True, "ja4: t13d is within t13*"),
        (True, "ech: it is an encrypted hello"),
    ]
    assert told(policies.CURL, Shown.of(None, Protocol.HTTP)) == [
        (False, "user: root is not joe"),
        (False, "protocol: http is none of tls, ssh"),
        (False, "alpn: no protocol is offered by ALPN"),
        (False, "ja4: no TLS fingerprint is known"),
        (False, "ech: no TLS hello is known"),
    ]
    assert told(policies.UNKNOWN, Shown.of(None, alpn=("x", "y"), ja4="t12")) == [
        (False, "user: who runs the program is not known"),
        (True, "protocol: it is tls"),
        (False, "alpn: x, y is not within h2"),
        (False, "ja4: t12 is not within t13*"),
        (False, "ech: a hello in the clear is not an encrypted hello"),
    ]
    assert told(policies.CURL, NOTHING_SHOWN)[1] == (False, "protocol: what it speaks is not known")


def test_when_a_rule_holds_is_told_by_the_clocks_of_its_zone() -> None:
    local = Rule(name="r", owner="joe", action=Action.BLOCK, time=("Mon 08:00-18:00", "Tue"))
    abroad = Rule(name="s", action=Action.BLOCK, time=("Mon 08:00-10:00 Europe/Berlin",))
    old = Rule(name="t", action=Action.BLOCK, expires="2026-01-05 16:00:00", expires_s=int(NOON_S))
    policy = Policy(rules=(local, abroad, old), zones=policies.ZONES)

    def told(at_s: float) -> list[tuple[bool, str]]:
        story = explain(policy, policies.CURL, Endpoint(address="", port=443), at_s, NOTHING_SHOWN)
        assert [tried.owner for tried in story.tried] == ["joe", "", ""]
        return [(check.holds, f"{check.key}: {check.why}") for tried in story.tried for check in tried.conditions]

    assert told(NOON_S) == [
        (True, "time: Mon 16:00 is within Mon 08:00-18:00, Tue"),
        (False, "time: Mon 12:00 Europe/Berlin is not within Mon 08:00-10:00 Europe/Berlin"),
        (False, "expires: it expired 2026-01-05 16:00:00"),
    ]
    assert told(NOON_S - 1)[2] == (True, "expires: it expires 2026-01-05 16:00:00")
