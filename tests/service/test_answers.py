"""Questions to a child: who waits gets the answer of the right kind, in order, or hears that none comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.core.messages import Drained, FlowsAnswer, FlowsQuestion, Switch, Switched
from mitmsec.service.answers import Answers
from mitmsec.service.children import ChildFailed


class Child:
    """A child that remembers what it was sent."""

    role = "gate"

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.channel = SimpleNamespace(send=lambda message, *fds: self.sent.append(message))
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()


def test_each_kind_is_answered_in_the_order_of_its_questions() -> None:
    async def story() -> tuple[int, int, int]:
        answers, child = Answers(), Child()
        first = asyncio.create_task(answers.ask(child, FlowsQuestion(), answer=FlowsAnswer))  # type: ignore[arg-type]
        switch = asyncio.create_task(answers.ask(child, Switch(off=True), answer=Switched))  # type: ignore[arg-type]
        second = asyncio.create_task(answers.ask(child, FlowsQuestion(), answer=FlowsAnswer))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert len(child.sent) == 3
        for message in (FlowsAnswer(live=1, decrypted=0), FlowsAnswer(live=2, decrypted=0), Switched(cut=3)):
            assert answers.heard(message)
        assert not answers.heard(Switched(cut=4))  # nobody has asked
        assert not answers.heard(Drained(cut=1))
        return (await first).live, (await second).live, (await switch).cut

    assert asyncio.run(story()) == (1, 2, 3)


@pytest.mark.parametrize("dies", [True, False])
def test_a_child_that_dies_or_stays_silent_is_a_failure(dies: bool) -> None:
    async def story() -> bool:
        answers, child = Answers(), Child()
        asked = asyncio.create_task(
            answers.ask(child, FlowsQuestion(), answer=FlowsAnswer, deadline_s=0.05)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0)
        if dies:
            child.ended.set_result(1)
        with pytest.raises(ChildFailed, match="the gate does not answer"):
            await asked
        return answers.heard(FlowsAnswer(live=0, decrypted=0))  # too late: for nobody

    assert asyncio.run(story()) is False
