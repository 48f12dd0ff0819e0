"""One console for the tests of its pages: a small log, accounts of every role, all that is done on record."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from audit_events import CURL, connection, finding, request
from console_stage import NOW, Browser, Stage, stage
from msgspec.structs import replace

from mitmsec.audit.console.duty import Duty
from mitmsec.audit.console.throttle import Throttle
from mitmsec.audit.event import CertificateSeen, FaultSeen, Outcome
from mitmsec.core.model import Action, Process, Severity

PYTHON = Process(pid=12, exe="/usr/bin/python3.13", name="python3", parent=CURL.parent)
NAMES = {
    "vera": Duty.VIEWER,
    "rosa": Duty.REVIEWER,
    "rita": Duty.REVIEWER,
    "axel": Duty.APPROVER,
    "anna": Duty.ADMINISTRATOR,
}


@pytest.fixture(scope="module")
def desk_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("console")) as made:
        fill(made)
        yield made


def fill(made: Stage) -> None:
    """Five connections on two days, with three findings."""
    at = NOW - timedelta(days=2)
    low = replace(finding("flow-1"), finding=replace(finding().finding, detector="iban", severity=Severity.LOW))
    leaf = CertificateSeen(flow="flow-1", serial="ab", names=("api.example.com",), not_after="2026-12-01T00:00:00Z")
    fault = FaultSeen(what="pinned", detail="it went", flow="flow-1", failed="open")
    made.log.append([(at, one) for one in (leaf, request(), finding(), low, fault, connection())])
    blocked = connection("flow-2", action=Action.BLOCK, outcome=Outcome.BLOCKED, host="paste.example")
    made.log.append([(at + timedelta(days=1), blocked)])
    passed = connection("flow-3", process=PYTHON, action=Action.BYPASS, host=None)
    made.log.append([(at + timedelta(days=1), one) for one in (finding("flow-3"), passed)], PYTHON)
    for name, duty in NAMES.items():
        made.account(name, duty)


@pytest.fixture
def the(desk_stage: Stage) -> Iterator[Stage]:
    """The console, with nothing on record yet of what the test does."""
    desk_stage.reviews.clear()
    desk_stage.console.entry.by_name, desk_stage.console.entry.by_address = Throttle(), Throttle(1000)
    desk_stage.takes, desk_stage.now = True, NOW
    yield desk_stage
    desk_stage.takes, desk_stage.now = True, NOW


@pytest.fixture
def rosa(the: Stage) -> Browser:
    """A reviewer's browser."""
    return the.browser("rosa")
