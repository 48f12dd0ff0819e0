"""Orders of the service, with a supervisor that is played by the test."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import msgspec
import pytest

from mitmsec.audit.event import ServiceSeen
from mitmsec.core.content_orders import (
    ContentAnswer,
    ContentErased,
    ContentLimited,
    ContentOrder,
    ContentRefused,
    EraseContent,
    LimitContent,
)
from mitmsec.core.messages import Message
from mitmsec.core.policy import Policy
from mitmsec.core.retention import Retention
from mitmsec.core.unmasking import Person
from mitmsec.service import control
from mitmsec.service.children import ChildFailed
from mitmsec.service.orders import ServiceOrders, refusal
from mitmsec_redirect.backend import BackendUnavailable

CLOSED = control.RunClosed(committed=True, connections=4, requests=0, findings=0, faults=0, cut=0, survivors=0)
START = control.StartService(policy_file="/p.toml", policy_sha256="0", workers=1, bound=False)
RELOAD = control.ReloadService(policy_file="/q.toml", policy_sha256="1")


class Session:
    """A session that does what it is told."""

    def __init__(self, name: str, order: Any = START) -> None:
        self.name, self.policy_order = name, order
        self.is_service = isinstance(order, control.StartService)
        self.fails: Exception | None = None
        self.off = False
        self.policy = Policy(retention=Retention(evidence_s=60))

    async def reload(self, order: control.ReloadService, *fds: int) -> None:
        if self.fails is not None:
            raise self.fails
        self.policy_order = order
        for descriptor in fds:
            os.close(descriptor)

    @property
    def children(self) -> Session:
        """It stands for its gate and workers, too."""
        return self

    async def switch(self, *, off: bool) -> int:
        self.off = off
        return 2 if off else 0


class Supervisor:
    """Keeps sessions, and fails to open one where it is to."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.events: list[ServiceSeen] = []
        self.off = False
        self.root_pem = "PEM"
        self.fails: Exception | None = None
        self.backbone = self
        self.adopted = 0
        self.switching = asyncio.Lock()
        self.ended: list[str] = []
        self.content = self
        self.ordered: list[Any] = []
        self.limits: ContentAnswer = ContentLimited()

    async def ask(self, order: ContentOrder) -> ContentAnswer:
        self.ordered.append(order)
        return self.limits

    async def order(self, order: ContentOrder, by: Person, fds: list[int]) -> ContentErased:
        self.ordered.append((order, by, fds))
        return ContentErased(count=1)

    def record(self, seen: ServiceSeen) -> None:
        self.events.append(seen)

    async def opened(self, order: Any, fds: list[int], user: str) -> Session:
        for descriptor in fds:
            os.close(descriptor)
        if self.fails is not None:
            raise self.fails
        session = self.sessions["s"] = Session("s", order)
        return session

    async def recorded(self, seen: Any) -> bool:
        self.events.append(seen)
        return self.fails is None

    async def adopt_ca(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.adopted += 1

    async def end(self, session: Session, *, home: str | None, status: int | None) -> control.RunClosed:
        self.ended.append(session.name)
        del self.sessions[session.name]
        return CLOSED


class Client:
    """One connection's orders."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.orders = ServiceOrders(supervisor, "root")  # type: ignore[arg-type]

    def __call__(self, order: Any, descriptors: int | None = None) -> Message:
        due = {control.StartService: 3, control.ReloadService: 2}.get(type(order), 0)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(due if descriptors is None else descriptors)]
        answer = asyncio.run(self.orders.answer(order, fds))
        for descriptor in fds:
            with pytest.raises(OSError):
                os.fstat(descriptor)
        return answer


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def client(supervisor: Supervisor) -> Client:
    return Client(supervisor)


def test_one_service_a_state(client: Client) -> None:
    assert client(START) == control.ServiceStarted(session="s", root_pem="PEM")
    again = client(START)
    assert isinstance(again, control.Refused)
    assert (again.error, again.status) == ("the service runs already, under /p.toml", 1)


def test_reload_gives_another_policy_and_one_that_fails_changes_nothing(client: Client, supervisor: Supervisor) -> None:
    client(START)
    assert client(RELOAD) == control.ServiceReloaded()
    supervisor.sessions["s"].fails = ChildFailed("the worker ended at start")
    failed = client(control.ReloadService(policy_file="/r.toml", policy_sha256="2"))
    assert isinstance(failed, control.Refused)
    assert (failed.error, failed.status) == ("the worker ended at start", 125)
    assert supervisor.sessions["s"].policy_order == RELOAD


def test_a_full_disk_refuses_a_reload_and_is_the_machines_fault(client: Client, supervisor: Supervisor) -> None:
    client(START)
    supervisor.sessions["s"].fails = OSError(errno.ENOSPC, "No space left on device")
    refused = client(RELOAD)
    assert isinstance(refused, control.Refused)
    assert (refused.error, refused.status) == ("the disk is full: [Errno 28] No space left on device", 3)
    assert "nothing was changed" in refused.remedy


@pytest.mark.parametrize("order", [RELOAD, control.StopService()])
def test_without_a_service_there_is_nothing_to_order(client: Client, order: Any) -> None:
    answer = client(order)
    assert isinstance(answer, control.Refused)
    assert (answer.error, answer.status) == ("no service runs on this state", 1)


def test_the_switch_holds_for_everybody_now_and_later_and_is_on_record(client: Client, supervisor: Supervisor) -> None:
    supervisor.sessions = {name: Session(name, None) for name in ("r1", "r2")}
    assert client(control.SwitchService(off=True)) == control.ServiceSwitched(cut=4, sessions=2)
    assert supervisor.off
    assert all(session.off for session in supervisor.sessions.values())
    assert client(control.SwitchService(off=False)) == control.ServiceSwitched(cut=0, sessions=2)
    assert [(event.operation, event.user, event.detail) for event in supervisor.events] == [
        ("switched_off", "root", "4 decrypted connections cut"),
        ("switched_on", "root", ""),
    ]


def test_one_switch_waits_for_another(supervisor: Supervisor) -> None:
    """Else the `on` that still waits for a slow session would undo the `off` that came later."""
    slow = Session("r1", None)
    supervisor.sessions = {"r1": slow}
    order: list[bool] = []

    async def switch(*, off: bool) -> int:
        await asyncio.sleep(0 if off else 0.05)
        order.append(off)
        return 0

    slow.switch = switch  # type: ignore[method-assign]
    orders = ServiceOrders(supervisor, "root")  # type: ignore[arg-type]

    async def story() -> None:
        first = asyncio.create_task(orders.answer(control.SwitchService(off=False), []))
        await asyncio.sleep(0.01)
        await orders.answer(control.SwitchService(off=True), [])
        await first

    asyncio.run(story())
    assert order == [False, True]
    assert supervisor.off


def test_stop_ends_it(client: Client, supervisor: Supervisor) -> None:
    client(START)
    assert client(control.StopService()) == CLOSED
    assert supervisor.ended == ["s"]


@pytest.mark.parametrize(("bound", "ended"), [(True, ["s"]), (False, [])])
def test_what_is_bound_to_its_client_ends_with_it(
    client: Client, supervisor: Supervisor, bound: bool, ended: list[str]
) -> None:
    client(control.StartService(policy_file="/p", policy_sha256="0", workers=1, bound=bound))
    asyncio.run(client.orders.client_gone())
    asyncio.run(client.orders.client_gone())
    assert supervisor.ended == ended


@pytest.mark.parametrize(("order", "descriptors"), [(START, 3), (RELOAD, 2)])
def test_with_keys_there_is_one_descriptor_more(client: Client, order: Any, descriptors: int) -> None:
    client(START)
    keyed = msgspec.structs.replace(order, keys=True)
    answer = client(keyed, descriptors=descriptors)
    assert isinstance(answer, control.Refused)
    assert answer.error == "descriptors are missing"
    if order is START:
        client(control.StopService())
    assert isinstance(client(keyed, descriptors=descriptors + 1), control.ServiceStarted | control.ServiceReloaded)


def test_an_order_without_its_descriptors_is_refused(client: Client) -> None:
    answer = client(START, descriptors=1)
    assert isinstance(answer, control.Refused)
    assert answer.status == 125


def test_a_service_that_cannot_start_says_whose_fault_that_is(client: Client, supervisor: Supervisor) -> None:
    supervisor.fails = BackendUnavailable("no cgroup2", "mount it")
    assert client(START) == control.Refused(error="no cgroup2", remedy="mount it", status=3)


def test_bugs_are_told_by_their_kind() -> None:
    assert refusal(ValueError("x")).error == "ValueError: x"
    assert refusal(OSError("disk")).error == "disk"


def test_other_messages_are_not_orders(client: Client) -> None:
    assert client.orders.takes(START)
    assert not client.orders.takes(control.StatusQuestion())


def test_a_changed_ca_is_adopted_or_refused_with_the_signers_words() -> None:
    async def story() -> None:
        supervisor = Supervisor()
        orders = ServiceOrders(supervisor, "alice")
        assert orders.takes(control.CaChanged())
        assert await orders.answer(control.CaChanged(), []) == control.CaAdopted()
        assert supervisor.adopted == 1
        supervisor.fails = ChildFailed("ca_refused: issuing.key: mode 0644")
        refused = await orders.answer(control.CaChanged(), [])
        assert isinstance(refused, control.Refused)
        assert "mode 0644" in refused.error

    asyncio.run(story())


def test_who_opens_what_lies_under_quarantine_goes_on_record_before(supervisor: Supervisor, client: Client) -> None:
    order = control.Review(item="f-1", user="joe", people=("alice", "bob"), keys=("k", "l"))
    assert client(order) == control.ReviewRecorded()
    (seen,) = supervisor.events
    assert msgspec.structs.asdict(seen) == {
        "operation": "quarantine_released", "item": "f-1", "user": "joe", "people": ("alice", "bob"),
        "keys": ("k", "l"), "detail": "",
    }  # fmt: skip
    account = control.Review(item="rosa", user="root", operation="account_added", detail="reviewer")
    assert client(account) == control.ReviewRecorded()
    assert (supervisor.events[-1].operation, supervisor.events[-1].detail) == ("account_added", "reviewer")
    supervisor.fails = OSError()
    answer = client(order)
    assert isinstance(answer, control.Refused)
    assert (answer.status, answer.remedy) == (3, "nothing was done; make room, and try again")


def test_what_lies_beside_the_log_is_the_recorders_business_and_the_services_policy_limits_it(
    supervisor: Supervisor, client: Client
) -> None:
    assert client.orders.takes(EraseContent(user="joe"))
    assert client(EraseContent(user="joe")) == ContentErased(count=1)
    assert supervisor.ordered == [(EraseContent(user="joe"), Person(name="root", uid=0), [])]
    client(START)
    client(RELOAD)
    assert supervisor.ordered[1:] == [LimitContent(evidence_s=60)] * 2
    assert supervisor.events == []
    supervisor.limits = ContentRefused(error="the disk is full", remedy="", status=3)
    assert client(RELOAD) == control.ServiceReloaded()
    (fault,) = supervisor.events
    assert "the disk is full" in fault.detail
