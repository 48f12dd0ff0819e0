"""The tests written inside a policy: one flow each, and what the policy must say to it."""

from __future__ import annotations

from mitmsec.core.model import Decision, Direction, Endpoint, Process, Value
from mitmsec.core.policy import Policy, PolicyTest
from mitmsec.core.quic_outcome import quic_outcome
from mitmsec.core.selector import NO_PID
from mitmsec.core.sniff import Protocol, Shown
from mitmsec.core.units import windows_services


class TestOutcome(Value, frozen=True):
    """`expected` and `got` are sentences' ends: `bypass by "banks"`."""

    __test__ = False  # not a test of ours, whatever pytest thinks of the name

    test: PolicyTest
    decision: Decision
    passed: bool
    expected: str
    got: str


def run_tests(policy: Policy, now_s: float) -> tuple[TestOutcome, ...]:
    """Every test of the policy, in the order written. A test that says no time is about now."""
    return tuple(_run(policy, test, now_s) for test in policy.tests)


def flow_of(test: PolicyTest) -> tuple[Process, Endpoint]:
    """Who connects and where to (inbound: who listens, and who connects); the address is empty where none is given."""
    of_windows = windows_services(test.service)
    process = Process(
        pid=NO_PID,
        exe=test.application,
        name=basename(test.application),
        user=test.user,
        unit=None if of_windows else test.service,
        services=of_windows,
        signer=test.signer,
        container=test.container,
        source="test",
    )
    return process, Endpoint(address=test.address, port=test.port)


def shown_by(test: PolicyTest) -> Shown:
    """What its first bytes tell."""
    protocol = test.protocol
    if protocol is None and test.direction is Direction.INBOUND:
        protocol = Protocol.TLS
    return Shown.of(test.host, protocol, test.alpn, test.ja4, test.ech)


def called(peer: Endpoint) -> Endpoint:
    """The service that `peer` of an incoming connection calls, as far as a question tells: not at which address."""
    return Endpoint(address="", port=peer.port)


def basename(path: str) -> str:
    """The last part of a path of either family."""
    return path.replace("\\", "/").rpartition("/")[2]


def _run(policy: Policy, test: PolicyTest, now_s: float) -> TestOutcome:
    process, remote = flow_of(test)
    at_s = now_s if test.at_s is None else test.at_s
    decision = policy.at_hello(process, remote, at_s, shown=shown_by(test), direction=test.direction)
    if test.direction is Direction.INBOUND:
        decision = policy.with_key(decision, called(remote), test.host)
    elif test.protocol is Protocol.QUIC:
        decision = quic_outcome(policy, decision, shown_by(test))
    passed = decision.action is test.expect and test.rule in (None, decision.rule)
    return TestOutcome(
        test=test,
        decision=decision,
        passed=passed,
        expected=test.expect.value if test.rule is None else f'{test.expect.value} by "{test.rule}"',
        got=f'{decision.action.value} by "{decision.rule}"',
    )
