"""The recorder's keeping of content beside the log: what findings bring, what is ordered of it, and its time.

    finding ─► keep ─► sealed, in the vault, on disk ─► `done` ─► the event that names it
    order ──► ask ──► doomed ─► on record ─► erased ─► answer
                 └──► asked for, agreed to (core.unmasking) ─► on record ─► shown, into the descriptor that came with it
    tick ──► once an hour, and at first: what has its time behind it ─► on record ─► erased

Orders are done one after the other. Where the disk does not take it, or the key cannot be used, a finding is recorded
without content, with the fault `evidence_not_kept`, and an order is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind
from mitmsec.audit.vault import Content, Sealer, Unopened, Vault, VaultUnwritable, Wanted, about
from mitmsec.channel import close_all
from mitmsec.core.content_orders import (
    ApproveUnmasking,
    ContentAnswer,
    ContentErased,
    ContentLimited,
    ContentOrder,
    ContentRefused,
    EraseContent,
    EvidenceAnswer,
    EvidenceQuestion,
    LimitContent,
    RequestUnmasking,
    Unmask,
    Unmasked,
    UnmaskingApproved,
    UnmaskingRequested,
    Unmaskings,
    UnmaskingsQuestion,
)
from mitmsec.core.model import Clear, Value
from mitmsec.core.unmasking import (
    REASON_LIMIT_CHARACTERS,
    Person,
    Unmasking,
    why_not_approved,
    why_not_shown,
)
from mitmsec.service.disk_thread import DiskThread

LOOK_S = 3600.0  # for what has its time behind it
NOT_SO, MACHINE, FAULT = 1, 3, 125

type Fault = Callable[[str, str, str, int], None]


class Keep(Value, frozen=True):
    """What is to be kept beside the event of this id; `keep_s` 0: until somebody erases it."""

    event: str
    session: str
    fields: Fields
    clear: Clear
    keep_s: int


class Ground(Protocol):
    """What it stands on (mitmsec.service.content_ground), made when it is needed. Raises VaultUnwritable."""

    @property
    def is_there(self) -> bool: ...

    def vault(self) -> Vault: ...
    def sealer(self) -> Sealer: ...
    def close(self) -> None: ...


class ContentDesk:
    """`record(kind, fields)` returns once that is on disk; `fault(what, detail, session, count)` waits for nothing.

    `origin` is the log's name. `answer` tells whoever asked.
    """

    def __init__(
        self,
        ground: Ground,
        origin: str,
        disk: DiskThread,
        record: Callable[[Kind, Fields], Awaitable[None]],
        fault: Fault,
        answer: Callable[[ContentAnswer], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ground, self._origin = ground, origin
        self._disk, self._record, self._fault, self._answer, self._clock = disk, record, fault, answer, clock
        self._waiting: list[tuple[Keep, Callable[[Fields], None]]] = []
        self._writing: list[tuple[Keep, Callable[[Fields], None]]] = []
        self._look_s = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_turn = asyncio.Lock()
        self._quiet = asyncio.Event()
        self._quiet.set()

    # -- what findings bring -------------------------------------------------------------------------------------------
    def keep(self, one: Keep, done: Callable[[Fields], None]) -> None:
        """`done` is called with what the event says of it, once it is on disk; with nothing where it is not kept."""
        self._waiting.append((one, done))
        if not self._writing:
            self._write()

    def holds(self, session: str) -> bool:
        """Something of `session` is on its way to the disk."""
        return any(one.session == session for one, _ in (*self._waiting, *self._writing))

    def _write(self) -> None:
        """All that waits, in one transaction."""
        batch, self._waiting = self._waiting, []
        self._writing = batch
        self._quiet.clear()
        made: list[Content] = []

        def work() -> None:
            sealer = self._ground.sealer()
            made.extend(self._sealed(sealer, one) for one, _ in batch)
            self._ground.vault().keep(made)

        def written(error: OSError | None) -> None:
            self._writing = []
            if error is not None:
                self._not_kept(batch, str(error))
            else:
                for (_, done), content in zip(batch, made, strict=True):
                    done(_named(content))
            if self._waiting:
                return self._write()
            self._quiet.set()

        self._disk(work, written)

    def _not_kept(self, batch: Sequence[tuple[Keep, Callable[[Fields], None]]], why: str) -> None:
        for session, count in Counter(one.session for one, _ in batch).items():
            self._fault("evidence_not_kept", why, session, count)
        for _, done in batch:
            done({})

    def _sealed(self, sealer: Sealer, one: Keep) -> Content:
        sealed, key = sealer.sealed(one.clear.value, about(self._origin, one.event))
        process: dict[str, Any] = one.fields.get("process") or {}
        now_s, uid = int(self._clock()), process.get("uid")
        return Content(
            id=os.urandom(8).hex(),
            event=one.event,
            kind=Kind.FINDING.value,
            connection=str(one.fields.get("connection") or ""),
            user=process.get("user"),
            uid=None if uid is None else str(uid),
            created_s=now_s,
            expires_s=now_s + one.keep_s if one.keep_s else None,
            origin=self._origin,
            key_id=sealer.key_id,
            sealed=sealed,
            key=key,
        )

    # -- orders --------------------------------------------------------------------------------------------------------
    def ask(self, order: ContentOrder, fds: list[int]) -> None:
        """It is done, and then answered. Owns `fds`."""
        self._begin(self._answered(order, fds))

    async def _answered(self, order: ContentOrder, fds: list[int]) -> None:
        try:
            async with self._in_turn:
                answer = await self._done(order, fds)
        except VaultUnwritable as error:
            answer = ContentRefused(
                error=str(error), remedy="nothing is shown; make room, and try again", status=MACHINE
            )
        finally:
            close_all(fds)
        self._answer(replace(answer, number=order.number))

    async def _done(self, order: ContentOrder, fds: list[int]) -> ContentAnswer:
        if isinstance(order, LimitContent) and not self._ground.is_there:
            return ContentLimited()
        vault, by = await self._on_disk(self._ground.vault), order.by
        match order:
            case LimitContent(evidence_s=evidence_s):
                await self._on_disk(partial(vault.limit, evidence_s))
                self._look_s = -math.inf
                return ContentLimited()
            case UnmaskingsQuestion():
                return Unmaskings(requests=tuple(await self._on_disk(vault.unmaskings)))
            case EvidenceQuestion(event=event):
                requests = tuple(await self._on_disk(partial(vault.unmaskings_of, event)))
                times = await self._on_disk(partial(vault.times, event)) or (None, None, None)
                return EvidenceAnswer(kept_s=times[0], expires_s=times[1], erased_s=times[2], requests=requests)
            case _ if by is None:
                return ContentRefused(error="it is not said who orders it", remedy="", status=FAULT)
            case EraseContent():
                return await self._erase_ordered(vault, order, by)
            case RequestUnmasking():
                return await self._request(vault, order, by)
            case ApproveUnmasking(request=request):
                return await self._approve(vault, request, by)
            case Unmask(event=event):
                return await self._unmask(vault, event, by, fds)
            case _:
                raise TypeError(type(order).__name__)

    async def _erase_ordered(self, vault: Vault, order: EraseContent, by: Person) -> ContentAnswer:
        wanted = Wanted(user=order.user, connection=order.connection, event=order.event, before_s=order.before_s)
        if wanted == Wanted():
            return ContentRefused(error="everything would be erased", remedy="say what is to be erased", status=NOT_SO)
        number = os.urandom(8).hex()
        count = await self._on_disk(partial(vault.doom, number, wanted))
        selected = {
            key: value
            for key, value in (
                ("user", order.user),
                ("connection", order.connection),
                ("event", order.event),
                ("before", "" if order.before_s is None else _stamp(order.before_s)),
            )
            if value
        }
        told = {**_told("evidence_erased", by, order.reason), "count": count, "selected": selected}
        await self._record(Kind.REVIEW, told)
        await self._erase(vault, number)
        return ContentErased(count=count)

    async def _request(self, vault: Vault, order: RequestUnmasking, by: Person) -> ContentAnswer:
        content = await self._on_disk(partial(vault.find, order.event))
        if content is None:
            return _nothing(order.event)
        one = Unmasking(
            id=os.urandom(4).hex(),
            event=order.event,
            reason=order.reason[:REASON_LIMIT_CHARACTERS],
            by=by,
            at_s=int(self._clock()),
        )
        await self._on_disk(partial(vault.note, one))
        named = {"request": one.id, "event": one.event, "connection": content.connection}
        await self._record(Kind.REVIEW, {**_told("evidence_requested", by, one.reason), **named})
        return UnmaskingRequested(request=one.id)

    async def _approve(self, vault: Vault, request: str, by: Person) -> ContentAnswer:
        one = await self._on_disk(partial(vault.unmasking, request))
        if one is None:
            return ContentRefused(error=f"nobody has made a request {request}", remedy="", status=NOT_SO)
        now_s = int(self._clock())
        if why := why_not_approved(one, by, now_s):
            return ContentRefused(error=why, remedy="nothing was agreed to", status=NOT_SO)
        await self._on_disk(partial(vault.note, replace(one, approved_by=by, approved_s=now_s)))
        named = {"request": one.id, "event": one.event, "requested_by": str(one.by)}
        await self._record(Kind.REVIEW, {**_told("evidence_approved", by, one.reason), **named})
        return UnmaskingApproved(asked_by=one.by, event=one.event)

    async def _unmask(self, vault: Vault, event: str, by: Person, fds: list[int]) -> ContentAnswer:
        requests = [one for one in await self._on_disk(partial(vault.unmaskings_of, event)) if one.by == by]
        now_s = int(self._clock())
        one = next((one for one in requests if not why_not_shown(one, by, now_s)), None)
        if one is None or one.approved_by is None or len(fds) != 1:
            why = why_not_shown(requests[0], by, now_s) if requests else "you have not asked for it"
            return ContentRefused(error=why, remedy="ask for it, and have another person agree", status=NOT_SO)
        content = await self._on_disk(partial(vault.find, event))
        if content is None:
            return _nothing(event)
        sealer = await self._on_disk(self._ground.sealer)
        try:
            bound = about(content.origin, content.event)
            clear = sealer.opened(content.key_id, content.key, content.sealed, bound)
        except Unopened as error:
            return ContentRefused(error=f"it does not open: {error}", remedy="", status=NOT_SO)
        await self._on_disk(partial(vault.note, replace(one, shown_s=now_s)))
        people = {"requested_by": str(one.by), "approved_by": str(one.approved_by)}
        named = {"request": one.id, "event": event, "connection": content.connection, **people}
        await self._record(Kind.REVIEW, {**_told("evidence_unmasked", by, one.reason), **named})
        os.set_blocking(fds[0], False)  # who asked may not keep the recorder waiting: a pipe takes so much at once
        try:
            os.write(fds[0], clear)
        except OSError as error:
            return ContentRefused(error=f"it could not be handed over: {error.strerror}", remedy="", status=FAULT)
        return Unmasked(approved_by=one.approved_by)

    # -- time ----------------------------------------------------------------------------------------------------------
    def tick(self, now_s: float) -> None:
        """Called often; `now_s` is monotonic."""
        if now_s < self._look_s + LOOK_S:
            return
        self._look_s = now_s
        if self._ground.is_there:
            self._begin(self._look())

    async def _look(self) -> None:
        async with self._in_turn:
            try:
                vault = await self._on_disk(self._ground.vault)
                await self._finish(vault)
                number = os.urandom(8).hex()
                count = await self._on_disk(partial(vault.doom_expired, number, int(self._clock())))
                if count:
                    told = {
                        "operation": "evidence_expired",
                        "count": count,
                        "detail": f"{count}, by [retention]",
                    }
                    await self._record(Kind.SERVICE, told)
                    await self._erase(vault, number)
            except VaultUnwritable as error:
                self._fault("evidence_not_erased", str(error), "", 1)

    async def _finish(self, vault: Vault) -> None:
        """What a recorder was about to erase, or this one could not. Orders are done in turn, so none is under way."""
        for number, count in (await self._on_disk(vault.unfinished)).items():
            told = {"operation": "evidence_erased", "user": "recorder", "count": count}
            await self._record(Kind.REVIEW, {**told, "reason": "an erasure had been begun, and was not done"})
            await self._erase(vault, number)

    async def _erase(self, vault: Vault, number: str) -> None:
        while await self._on_disk(partial(vault.erase, number, int(self._clock()))):
            pass

    # -- tasks ---------------------------------------------------------------------------------------------------------
    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_disk[T](self, work: Callable[[], T]) -> T:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: list[T] = []

        def done(error: OSError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._disk(lambda: found.append(work()), done)
        await future
        return found[0]

    async def idle(self, deadline_s: float) -> None:
        """What came is on disk, and what was ordered is done; or so much time has passed."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._quiet.wait()
                if self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            for task in self._tasks:
                task.cancel()

    def close(self) -> None:
        """Once nothing is under way."""
        self._disk.close()
        self._ground.close()


def _named(content: Content) -> Fields:
    """What the event says of it."""
    digest = hashlib.sha256(content.sealed).hexdigest()
    return {"content": {"id": content.id, "sha256": digest, "size": len(content.sealed)}}


def _told(operation: str, by: Person, reason: str) -> Fields:
    uid = {} if by.uid is None else {"uid": by.uid}
    return {"operation": operation, "user": by.name, **uid, "reason": reason[:REASON_LIMIT_CHARACTERS]}


def _nothing(event: str) -> ContentRefused:
    why = f"nothing is kept beside event {event}: its policy keeps no evidence, it has none, or it was erased"
    return ContentRefused(error=why, remedy="`mitmsec audit show` says whether it has `content`", status=NOT_SO)


def _stamp(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
