"""What a worker asks issuers, and how long it waits."""

from __future__ import annotations

import asyncio
import time

import pytest
from badssl_certificates import root
from issuer_stage import chain_of, naming

from mitmsec.channel import Channel, pair
from mitmsec.core.model import Revocation
from mitmsec.core.origin_proof import Standing, Status
from mitmsec.service import issuers as module
from mitmsec.service.broker_messages import RevocationAnswer, RevocationQuestion
from mitmsec.service.issuers import Issuers

CA = root()
LEAF = CA.leaf("www.origin.test", more=naming("http://ocsp.test"))
CHAIN = chain_of(LEAF, CA)
UNASKED = Status(standing=Standing.UNASKED)


class Broker:
    """The other end: remembers, and answers `statuses` unless that is None."""

    def __init__(self, mode: Revocation = Revocation.SOFT) -> None:
        self.mode = mode
        ours, theirs = pair()
        loop = asyncio.get_running_loop()
        self.channel = Channel(theirs, [RevocationQuestion])
        self.channel.attach(loop, self._asked, lambda: None)
        self.questions: list[RevocationQuestion] = []
        self.statuses: tuple[Status, ...] | None = (self.good(),)
        self.ahead_s = 0.0
        self.issuers = Issuers(ours, loop, clock_s=lambda: time.time() + self.ahead_s)

    @staticmethod
    def good() -> Status:
        return Status(standing=Standing.GOOD, text="OCSP", until_s=int(time.time()) + 3600)

    def _asked(self, question: RevocationQuestion, fds: list[int]) -> None:
        self.questions.append(question)
        if self.statuses is not None:
            self.channel.send(RevocationAnswer(number=question.number + 1000, statuses=()))  # to nobody
            self.channel.send(RevocationAnswer(number=question.number, statuses=self.statuses))

    async def ask(self, chain: tuple[bytes, ...] = CHAIN) -> tuple[Status, ...]:
        return await self.issuers.ask(chain, self.mode)


def test_an_answer_is_used_until_it_is_old() -> None:
    async def story() -> None:
        broker = Broker()
        assert await broker.ask() == await broker.ask() == broker.statuses
        assert [question.chain for question in broker.questions] == [CHAIN]
        broker.ahead_s = 4000
        await broker.ask()
        assert len(broker.questions) == 2
        broker.issuers.close()
        broker.channel.close()

    asyncio.run(story())


def test_where_nobody_can_be_asked_the_broker_is_not() -> None:
    async def story() -> None:
        broker = Broker()
        assert await broker.ask(chain_of(CA.leaf("www.origin.test"), CA)) == (UNASKED,)
        assert await broker.ask(CHAIN[:1]) == ()
        assert broker.questions == []

    asyncio.run(story())


def test_a_broker_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setitem(module.DEADLINE_S, Revocation.SOFT, 0.05)
        broker = Broker()
        broker.statuses = None
        (status,) = await broker.ask()
        assert (status.standing, status.text) == (Standing.UNKNOWN, "no answer within 0.05 s")
        broker.statuses = (broker.good(),)
        assert await broker.ask() == broker.statuses, "asked again, not remembered"

    asyncio.run(story())


def test_a_broker_that_has_gone_or_answers_nonsense() -> None:
    async def story() -> None:
        broker = Broker()
        broker.statuses = ()
        (status,) = await broker.ask()
        assert (status.standing, status.text) == (Standing.UNKNOWN, "the broker answered something else")
        broker.statuses = None
        waiting = asyncio.ensure_future(broker.ask())
        await asyncio.sleep(0.05)
        broker.channel.close()
        (status,) = await waiting
        assert status.standing is Standing.UNKNOWN
        (status,) = await broker.ask()
        assert (status.standing, status.text) == (Standing.UNKNOWN, "the broker has gone")

    asyncio.run(story())


def test_a_chain_that_fits_in_no_packet_is_not_known() -> None:
    async def story() -> None:
        broker = Broker()
        (first, *_) = await broker.ask((*CHAIN, bytes(200_000)))
        assert first.standing is Standing.UNKNOWN

    asyncio.run(story())


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(module, "KEPT_LIMIT", 1)
        broker = Broker()
        other = chain_of(CA.leaf("other.test", more=naming("http://ocsp.test")), CA)
        for chain in (CHAIN, other, other, CHAIN):
            await broker.ask(chain)
        assert [question.chain for question in broker.questions] == [CHAIN, other, CHAIN]

    asyncio.run(story())
