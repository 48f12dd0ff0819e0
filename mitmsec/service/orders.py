"""What one client of the control socket orders of the service, and its answers.

StartService ──► ServiceStarted        one service a state; `bound` ones end with their client
ReloadService ─► ServiceReloaded       a policy that cannot be taken up changes nothing
SwitchService ─► ServiceSwitched       holds for every session, and for those that are opened later
StopService ───► RunClosed
CaChanged ─────► CaAdopted             the signer reads the CA again; what was done to it goes on record
Review ────────► ReviewRecorded        who opens what lies under quarantine goes on record before
ContentOrder ──► ContentAnswer         the recorder's (mitmsec.core.content_orders)
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterable
from typing import Protocol, assert_never

from mitmsec.audit.event import FaultSeen, ReviewSeen, ServiceSeen
from mitmsec.channel import close_all
from mitmsec.core.content_orders import ContentOrder, ContentRefused, LimitContent
from mitmsec.core.messages import Message
from mitmsec.core.unmasking import Person
from mitmsec.service import control
from mitmsec.service.backbone import Backbone
from mitmsec.service.children import ChildFailed
from mitmsec.service.refusals import FULL, MACHINE
from mitmsec.service.session import Session
from mitmsec_redirect.backend import BackendUnavailable

type Order = (
    control.StartService
    | control.StopService
    | control.ReloadService
    | control.SwitchService
    | control.CaChanged
    | control.Review
)
_FDS = {
    control.StartService: 3,
    control.ReloadService: 2,
    control.StopService: 0,
    control.SwitchService: 0,
    control.CaChanged: 0,
    control.Review: 0,
}
_NO_SERVICE = control.Refused(
    error="no service runs on this state", remedy="start one: mitmsec start --policy FILE", status=1
)


class Sessions(Protocol):
    """The supervisor, as far as orders need it."""

    backbone: Backbone

    async def opened(self, order: control.OpenRun | control.StartService, fds: list[int], user: str) -> Session: ...
    async def end(self, session: Session, *, home: str | None, status: int | None) -> control.RunClosed: ...


class ServiceOrders:
    """One client's."""

    def __init__(self, supervisor: Sessions, user: str, uid: int = 0) -> None:
        self._supervisor, self._user, self._uid = supervisor, user, uid
        self._bound: Session | None = None

    def takes(self, message: object) -> bool:
        return type(message) in _FDS or isinstance(message, ContentOrder)

    async def answer(self, order: Order | ContentOrder, fds: list[int]) -> Message:
        """What became of it; nothing of what fails is left."""
        if isinstance(order, ContentOrder):
            by = Person(name=self._user, uid=self._uid)
            return await self._supervisor.backbone.content.order(order, by, fds)
        if len(fds) != _descriptors_of(order):
            close_all(fds)
            return control.Refused(error="descriptors are missing", remedy="", status=125)
        try:
            return await self._answer(order, fds)
        except Exception as error:
            traceback.print_exc()
            return _no_room(error) if isinstance(error, OSError) and error.errno in FULL else refusal(error)

    async def _answer(self, order: Order, fds: list[int]) -> Message:
        match order:
            case control.StartService():
                return await self._start(order, fds)
            case control.ReloadService():
                return await self._reload(order, fds)
            case control.SwitchService(off=off):
                return await self._switch(off=off)
            case control.StopService():
                service = self._service()
                return _NO_SERVICE if service is None else await self._supervisor.end(service, home=None, status=None)
            case control.CaChanged():
                await self._supervisor.backbone.adopt_ca()
                return control.CaAdopted()
            case control.Review():
                return await self._review(order)
            case _:
                assert_never(order)

    async def client_gone(self) -> None:
        """What was bound to the client ends."""
        if self._bound is not None and self._service() is self._bound:
            await self._supervisor.end(self._bound, home=None, status=None)

    def _service(self) -> Session | None:
        return next((one for one in self._sessions() if one.is_service), None)

    def _sessions(self) -> Iterable[Session]:
        return list(self._supervisor.backbone.sessions.values())

    async def _start(self, order: control.StartService, fds: list[int]) -> Message:
        if (running := self._service()) is not None:
            close_all(fds)
            return control.Refused(
                error=f"the service runs already, under {running.policy_order.policy_file}",
                remedy="mitmsec reload --policy FILE gives it another policy, mitmsec stop ends it",
                status=1,
            )
        session = await self._supervisor.opened(order, fds, self._user)
        await self._limit_content(session)
        self._bound = session if order.bound else None
        return control.ServiceStarted(session=session.name, root_pem=self._supervisor.backbone.root_pem)

    async def _reload(self, order: control.ReloadService, fds: list[int]) -> Message:
        service = self._service()
        if service is None:
            close_all(fds)
            return _NO_SERVICE
        try:
            await service.reload(order, *fds)
        except BaseException:
            close_all(fds)
            raise
        await self._limit_content(service)
        return control.ServiceReloaded()

    async def _limit_content(self, service: Session) -> None:
        """What lies there already is kept for no longer than the service's policy says."""
        evidence_s = service.policy.retention.evidence_s
        if evidence_s is None:
            return
        answer = await self._supervisor.backbone.content.ask(LimitContent(evidence_s=evidence_s))
        if isinstance(answer, ContentRefused):
            detail = f"[retention] does not hold for what lies there already: {answer.error}"
            self._supervisor.backbone.record(FaultSeen(what="evidence_not_erased", detail=detail, session=service.name))

    async def _review(self, order: control.Review) -> Message:
        seen = ReviewSeen(
            operation=order.operation,
            item=order.item,
            user=order.user,
            people=order.people,
            keys=order.keys,
            detail=order.detail,
        )
        if await self._supervisor.backbone.recorded(seen):
            return control.ReviewRecorded()
        return control.Refused(
            error="the audit log does not take the event",
            remedy="nothing was done; make room, and try again",
            status=3,
        )

    async def _switch(self, *, off: bool) -> Message:
        """First the word for whoever comes, then those who are there; none of them can keep it from the others."""
        backbone = self._supervisor.backbone
        async with backbone.switching:  # else an `on` that waits could undo a later `off`
            backbone.off = off
            sessions = list(self._sessions())
            cut = sum(await asyncio.gather(*(session.children.switch(off=off) for session in sessions)))
        detail = f"{cut} decrypted connection{'' if cut == 1 else 's'} cut" if off else ""
        operation = "switched_off" if off else "switched_on"
        backbone.record(ServiceSeen(operation=operation, user=self._user, detail=detail))
        return control.ServiceSwitched(cut=cut, sessions=len(sessions))


def _descriptors_of(order: Order) -> int:
    """How many come with it."""
    has_keys = isinstance(order, control.StartService | control.ReloadService) and order.keys
    return _FDS[type(order)] + has_keys


def _no_room(error: OSError) -> control.Refused:
    remedy = "nothing was changed; make room on the disk of the state directory, and give the order again"
    return control.Refused(error=f"the disk is full: {error}", remedy=remedy, status=MACHINE)


def refusal(error: Exception) -> control.Refused:
    """What the caller is told of `error`: the machine's fault or ours."""
    if isinstance(error, BackendUnavailable):
        return control.Refused(error=error.reason, remedy=error.remedy, status=3)
    remedy = "the supervisor's log in STATE/run/supervisor.log says more"
    what = str(error) if isinstance(error, ChildFailed | OSError) else f"{type(error).__name__}: {error}"
    return control.Refused(error=what, remedy=remedy, status=125)
