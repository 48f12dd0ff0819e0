"""The tests inside a policy pass exactly if action and rule are the expected ones."""

from __future__ import annotations

import pytest
from policies import NOON_S

from mitmsec.core.known_service import KnownService
from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import Application, Policy, PolicyTest, Rule
from mitmsec.core.policytest import basename, flow_of, run_tests

RULES = (
    Rule(name="banks", action=Action.BYPASS, host=("*.bank.example",)),
    Rule(name="root", action=Action.BLOCK, application=("root's curl",), address=("192.0.2.0/24",), port=((80, 80),)),
    Rule(name="signed", action=Action.BLOCK, application=("signed service",)),
    Rule(name="boxes", action=Action.CAPTURE, application=("boxed web",)),
)
APPLICATIONS = (
    Application(name="root's curl", process_name=("curl",), user=("root",)),
    Application(name="signed service", service=("windows:W3SVC",), signer=("A",)),
    Application(name="boxed web", service=("*.service",), container=("docker:*",)),
)


@pytest.mark.parametrize(
    ("test", "passed", "expected", "got"),
    [
        (
            PolicyTest(application="/x", host="a.bank.example", expect=Action.BYPASS),
            True,
            "bypass",
            'bypass by "banks"',
        ),
        (
            PolicyTest(application="/x", host="a.bank.example", expect=Action.BYPASS, rule="defaults"),
            False,
            'bypass by "defaults"',
            'bypass by "banks"',
        ),
        (PolicyTest(application="/x", expect=Action.BLOCK), False, "block", 'decrypt by "defaults"'),
        (
            PolicyTest(
                application="/bin/curl", user="root", address="192.0.2.1", port=80, expect=Action.BLOCK, rule="root"
            ),
            True,
            'block by "root"',
            'block by "root"',
        ),
        (
            PolicyTest(application="/x", service="web.service", container=f"docker:{'ab' * 32}", expect=Action.CAPTURE),
            True,
            "capture",
            'capture by "boxes"',
        ),
        (
            PolicyTest(
                application="C:\\x.exe", service="windows:w3svc", signer="CN=A", expect=Action.BLOCK, rule="signed"
            ),
            True,
            'block by "signed"',
            'block by "signed"',
        ),
        (
            PolicyTest(application="/x", service="web.service", expect=Action.CAPTURE),
            False,
            "capture",
            'decrypt by "defaults"',
        ),
    ],
)
def test_outcomes(test: PolicyTest, passed: bool, expected: str, got: str) -> None:
    (outcome,) = run_tests(Policy(applications=APPLICATIONS, rules=RULES, tests=(test,)), NOON_S)
    assert (outcome.passed, outcome.expected, outcome.got) == (passed, expected, got)


def test_a_test_without_an_address_has_an_endpoint_without_one() -> None:
    process, remote = flow_of(PolicyTest(application="C:\\x\\y.exe", expect=Action.BLOCK))
    assert (process.exe, process.name, remote.address, remote.port) == ("C:\\x\\y.exe", "y.exe", "", 443)


def test_the_last_part_of_a_path() -> None:
    assert [basename(path) for path in ("/usr/bin/curl", "C:\\a\\b.exe", "x")] == ["curl", "b.exe", "x"]


def test_a_test_of_an_incoming_connection_asks_about_the_service() -> None:
    rule = Rule(name="web", action=Action.BYPASS, direction=Direction.INBOUND, port=((443, 443),))
    test = PolicyTest(application="/x", expect=Action.BYPASS, rule="web", direction=Direction.INBOUND)
    outward = PolicyTest(application="/x", expect=Action.BYPASS, rule="web")
    outcomes = run_tests(Policy(rules=(rule,), tests=(test, outward)), NOON_S)
    assert [outcome.passed for outcome in outcomes] == [True, False]


def test_a_test_of_an_incoming_connection_takes_it_for_tls_and_names_whom_the_peer_asks_for() -> None:
    def got(host: str | None) -> str:
        test = PolicyTest(application="/x", host=host, expect=Action.DECRYPT, direction=Direction.INBOUND)
        shop = KnownService(name="shop", names=("shop.example",))
        (outcome,) = run_tests(Policy(inbound=Action.DECRYPT, services=(shop,), tests=(test,)), NOON_S)
        assert outcome.passed is (outcome.decision.action is Action.DECRYPT)
        return outcome.got

    assert got("shop.example") == 'decrypt by "defaults"'
    assert got("other.example") == got(None) == 'bypass by "defaults"'


def test_a_test_is_about_its_own_moment_or_about_now() -> None:
    rule = Rule(name="r", action=Action.BLOCK, expires_s=int(NOON_S))
    test = PolicyTest(application="/x", expect=Action.BLOCK)
    tests = (test, PolicyTest(application="/x", expect=Action.BLOCK, at_s=int(NOON_S) - 1))
    outcomes = run_tests(Policy(rules=(rule,), tests=tests), NOON_S)
    assert [outcome.passed for outcome in outcomes] == [False, True]
