"""A policy that selects by hash waits for it; any other one is not held up for long."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import msgspec
import pytest

from mitmsec.audit.event import ConnectionSeen, FaultSeen
from mitmsec.core.messages import Whose, WhoseAnswer, encode
from mitmsec.core.model import Caller, Confidence, Endpoint, ParentProcess, Process, Transport
from mitmsec.core.policy import DEFAULT_POLICY, Application, Policy
from mitmsec.service import owners
from mitmsec.service.missed import events
from mitmsec.service.owners import Owners, decides_by_hash, hashed
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.records import Missed, Reason

PROCESS = Process(pid=7, exe="/usr/bin/curl")
ASKED = Whose(number=1, pid=7, uid=0, comm="curl")
NO_UNICODE = "/opt/\udcff"  # as a path of any bytes reads in Python


class Reading:
    """Stands in for the table of processes: answers, or fails, as it is told to; keeps what was said of that."""

    def __init__(self, answer: Owner | Exception) -> None:
        self.answer = answer
        self.said: list[str] = []
        self.owners = Owners(self.read, self.said.append, must_have_hash=True)

    def read(self, pid: int, uid: int, comm: str, connected_ns: int | None, caller: Caller | None) -> Owner:
        self.caller = caller
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_which_policies_decide_by_hash() -> None:
    assert not decides_by_hash(DEFAULT_POLICY)
    assert not decides_by_hash(Policy(applications=(Application(name="a", path=("/x",)),)))
    assert decides_by_hash(Policy(applications=(Application(name="a", sha256=("0" * 64,)),)))


@pytest.mark.parametrize("must_have", [True, False])
def test_what_is_known_or_not_to_come_is_answered_at_once(must_have: bool) -> None:
    assert asyncio.run(hashed(Owner(PROCESS), must_have=must_have)) == PROCESS


@pytest.mark.parametrize("must_have", [True, False])
def test_a_hash_that_comes_is_in_the_answer(must_have: bool) -> None:
    async def story() -> Process:
        pending: Future[str | None] = Future()
        asking = asyncio.create_task(hashed(Owner(PROCESS, pending), must_have=must_have))
        await asyncio.sleep(0)
        pending.set_result("f" * 64)
        return await asking

    process = asyncio.run(story())
    assert (process.exe, process.sha256) == (PROCESS.exe, "f" * 64)


@pytest.mark.parametrize("must_have", [True, False])
def test_of_a_hash_that_cannot_be_had_nothing_is_said(must_have: bool) -> None:
    vain: Future[str | None] = Future()
    vain.set_result(None)
    assert asyncio.run(hashed(Owner(PROCESS, vain), must_have=must_have)) == PROCESS


def test_a_slow_hash_is_waited_for_only_where_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "HASH_WAIT_S", 0.02)

    async def story() -> None:
        slow: Future[str | None] = Future()
        slow.set_running_or_notify_cancel()
        exact = asyncio.create_task(hashed(Owner(PROCESS, slow), must_have=True))
        assert await hashed(Owner(PROCESS, slow), must_have=False) == PROCESS
        assert not exact.done()
        assert not slow.cancelled()  # others still wait for it
        slow.set_result("f" * 64)
        assert (await exact).sha256 == "f" * 64

    asyncio.run(story())


BAD: list[Owner | Exception] = [
    OSError(5, "Input/output error"),
    RuntimeError("a bug"),
    Owner(Process(pid=7, exe=NO_UNICODE, confidence=Confidence.KERNEL)),
    Owner(Process(pid=7, exe="/x", parent=ParentProcess(pid=1, exe=NO_UNICODE), confidence=Confidence.KERNEL)),
]


@pytest.mark.parametrize("answer", BAD)
def test_whatever_goes_wrong_the_gate_is_told_what_the_kernel_said(answer: Owner | Exception) -> None:
    reading = Reading(answer)
    owner = reading.owners.of(ASKED, None)
    assert owner == Owner(Process(pid=7, name="curl", user="root", uid=0, confidence=Confidence.INFERRED))
    encode(WhoseAnswer(number=1, process=owner.process))


def test_of_whom_nothing_is_known_nothing_is_said() -> None:
    """The kernel wrote nothing down, and looking it up failed."""
    reading = Reading(OSError(5, "Input/output error"))
    nobody = Whose(number=1, pid=0, uid=-1, comm="")
    assert reading.owners.of(nobody, None) == Owner(Process(pid=0))


def test_a_failure_is_said_once_however_often_a_program_tries() -> None:
    reading = Reading(Owner(Process(pid=7, exe=NO_UNICODE + "x" * 5000)))
    for _ in range(1000):
        reading.owners.of(ASKED, None)
    reading.answer = RuntimeError("another kind")
    reading.owners.of(ASKED, None)
    assert [line.split(":")[0] for line in reading.said] == ["owner of a connection, pid 7"] * 2
    assert max(map(len, reading.said)) < 400


def test_what_is_read_without_trouble_is_told_as_it_is() -> None:
    reading = Reading(Owner(PROCESS))
    assert reading.owners.of(ASKED, 1) == Owner(PROCESS)
    assert reading.said == []


def test_what_the_kernel_said_of_the_caller_is_what_is_read_by() -> None:
    reading = Reading(Owner(PROCESS))
    caller = Caller(1, 2, 3)
    reading.owners.of(msgspec.structs.replace(ASKED, caller=caller), 1)
    assert reading.caller == caller


def test_an_attempt_that_was_missed_is_on_record_whatever_its_program_is_called() -> None:
    reading = Reading(Owner(Process(pid=7, exe=NO_UNICODE)))
    found = events(
        [
            Missed(reason, Transport.UDP, Endpoint.of("192.0.2.7", 443), 7, 0, "curl", at_ns=1, netns=1, denied=True)
            for reason in (Reason.QUIC_REFUSED, Reason.LINK_LOCAL)
        ],
        lambda missed: reading.owners.of(missed, missed.at_ns).process,
        "run-1",
    )
    assert {type(event) for event in found} == {ConnectionSeen, FaultSeen}
    for event in found:
        encode(event)  # what cannot be sent would be `event_unsendable`


def test_a_hash_that_fails_costs_the_answer_its_hash_and_nothing_else() -> None:
    broken: Future[str | None] = Future()
    broken.set_exception(OSError(5, "Input/output error"))
    reading = Reading(Owner(PROCESS, broken))
    assert asyncio.run(reading.owners.hashed(Owner(PROCESS, broken))) == PROCESS
    assert len(reading.said) == 1


def test_a_user_whose_name_is_no_text_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "user_name", lambda uid: NO_UNICODE)
    assert Reading(RuntimeError("a bug")).owners.of(ASKED, None).process.user == "0"
