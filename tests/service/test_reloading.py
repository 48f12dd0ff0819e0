"""A reload changes all of a service's terms or none, whatever fails, and wherever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mitmsec.core.model import Action
from mitmsec.core.policy import Policy
from mitmsec.service import reloading
from mitmsec.service.children import ChildFailed
from mitmsec.service.reloading import Reloading, Terms
from mitmsec.service.scopes import NOBODY, Heirs
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.verdicts import Verdict

OLD, NEW = Policy(action=Action.BYPASS), Policy(action=Action.BLOCK)
HEIRS: Heirs = {(77, 1234): Verdict.SELECTED | Verdict.INHERITED}


class Gate:
    def __init__(self, said: list[str]) -> None:
        self._said = said

    def kill(self) -> None:
        self._said.append("the gate is ended")


class Service:
    """A session, as far as a reload needs it: everything that is done to it is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.policy, self.keys_fd = OLD, None
        self.policy_fd, self.roots_fd = opened(), opened()
        self.building = asyncio.Lock()
        self.gate: Gate | None = Gate(self.said)
        self.children = self
        self.unready, self.silent = False, False
        self.refusals: list[Exception | None] = []  # of the hook, in order

    @asynccontextmanager
    async def successors(self) -> AsyncIterator[tuple[int, ...]]:
        try:
            if self.unready:
                raise ChildFailed("a worker did not start")
            yield (1,)
        except BaseException:
            await asyncio.sleep(0)
            self.said.append("successors are dismissed")
            raise

    async def govern(self, numbers: tuple[int, ...]) -> None:
        await asyncio.sleep(0)
        self.said.append(f"the gate is told {self.policy.action}")
        if self.silent:
            raise ChildFailed("the gate does not answer")

    def heirs(self) -> Heirs:
        return HEIRS

    def change_hook(self, policy: Policy, heirs: Heirs) -> None:
        if self.refusals and (refusal := self.refusals.pop(0)) is not None:
            raise refusal
        self.said.append(f"the hook does {policy.action}" + (", and heirs inherit" if heirs == HEIRS else ""))

    def fault(self, what: str, detail: str = "") -> None:
        self.said.append(f"{what}: {detail}")


def opened() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def reloaded(service: Service, made: Reloading | None = None) -> Terms:
    """The terms that were given."""
    terms = Terms(NEW, opened(), opened(), None)
    asyncio.run((made or Reloading(service)).exchange(terms))
    return terms


def test_the_hook_and_then_the_gate_have_the_new_terms() -> None:
    service = Service()
    before = Terms.of(service)
    terms = reloaded(service)
    assert service.said == ["the hook does block", "the gate is told block"]
    assert Terms.of(service) == terms
    assert not is_open(before.policy_fd)
    assert not is_open(before.roots_fd)


def test_where_a_worker_does_not_start_nothing_was_changed() -> None:
    service = Service()
    before, service.unready = Terms.of(service), True
    with pytest.raises(ChildFailed, match="worker"):
        reloaded(service)
    assert service.said == ["successors are dismissed"]
    assert Terms.of(service) == before


def test_of_a_gate_that_does_not_answer_nobody_knows_what_it_has_heard() -> None:
    """So it ends, and the old terms hold before anything is waited for."""
    service = Service()
    before, service.silent = Terms.of(service), True
    with pytest.raises(ChildFailed, match="gate"):
        reloaded(service)
    assert service.said == [
        "the hook does block",
        "the gate is told block",
        "the gate is ended",
        "the hook does bypass, and heirs inherit",
        "successors are dismissed",
    ]
    assert Terms.of(service) == before
    assert is_open(before.policy_fd)


def test_where_there_is_no_gate_there_is_none_to_end() -> None:
    service = Service()
    service.gate, service.silent = None, True
    with pytest.raises(ChildFailed, match="gate"):
        reloaded(service)
    assert service.said[2:] == ["the hook does bypass, and heirs inherit", "successors are dismissed"]


def test_what_the_hook_refuses_the_gate_has_never_heard_of() -> None:
    service = Service()
    service.refusals = [OSError("no memory")]
    with pytest.raises(OSError, match="no memory"):
        reloaded(service)
    assert service.said == ["the hook does bypass, and heirs inherit", "successors are dismissed"]


@pytest.mark.parametrize("again", [OSError("still none"), EbpfUnavailable("still none", "Wait")])
def test_old_terms_that_the_hook_does_not_take_back_are_tried_until_it_does(
    monkeypatch: pytest.MonkeyPatch, again: Exception
) -> None:
    monkeypatch.setattr(reloading, "RESTORE_AGAIN_S", 0.0)
    service = Service()
    made = Reloading(service)
    service.refusals = [OSError("no memory"), again, again]
    with pytest.raises(OSError, match="no memory"):
        reloaded(service, made)
    assert service.said == [f"reload_not_undone: {again}", "successors are dismissed"]
    service.said.clear()
    for _ in range(3):
        made.look()
    assert service.said == [f"reload_not_undone: {again}", "the hook does bypass, and heirs inherit"]


def test_old_terms_are_not_tried_while_new_ones_are_on_their_way_nor_too_often() -> None:
    service = Service()
    made = Reloading(service)
    service.refusals = [OSError("no memory"), OSError("still none")]
    with pytest.raises(OSError, match="no memory"):
        reloaded(service, made)
    service.said.clear()
    made.look()
    made._again_s = 0.0

    async def while_building() -> None:
        async with service.building:
            made.look()

    asyncio.run(while_building())
    assert service.said == []
    reloaded(service, made)
    made.look()
    assert service.said == ["the hook does block", "the gate is told block"]


def test_who_is_to_inherit_again_is_not_forgotten_by_another_reload_that_fails() -> None:
    """Under terms that were restored in part, nobody is an heir."""
    service = Service()
    made = Reloading(service)
    service.refusals = [OSError("no memory"), OSError("still none"), OSError("none now")]
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            reloaded(service, made)
        service.heirs = lambda: NOBODY  # type: ignore[method-assign]
    assert "the hook does bypass, and heirs inherit" in service.said


def test_nobody_inherits_under_another_policy() -> None:
    service = Service()
    seen: list[Heirs] = []
    service.change_hook = lambda policy, heirs: seen.append(heirs)  # type: ignore[method-assign]
    reloaded(service)
    assert seen == [NOBODY]
