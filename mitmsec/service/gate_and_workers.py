"""The gate and the workers of a session: started, watched, replaced, asked, and ended.

    gate ◄──── WorkerUp ──── worker 0, 1 …      each with a channel of its own to the gate, and to the supervisor's
      │                                         signer and recorder
      └─ dies or hangs ──► all built anew       worker dies ──► that one, after a pause

A process takes longest to start for what it imports, a worker above all: `begin` starts them all at once, and `build`
gives them their settings. A worker that dies is replaced alone. When the gate dies, or the signer or recorder of the
supervisor, gate and workers are all built anew (`rebuild`); the listeners stay open, and until the new gate's first
heartbeat the hook follows `on_failure`. Another policy needs other workers (`successors`): new flows go to new ones,
the old end with their last.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from mitmsec.audit.event import FaultSeen
from mitmsec.channel import close_all, pair
from mitmsec.core.messages import (
    DnsRelays,
    Drain,
    Drained,
    Draining,
    Fault,
    FlowsAnswer,
    FlowsQuestion,
    GateSettings,
    Govern,
    Governed,
    Message,
    QuicRelays,
    Ready,
    Role,
    Switch,
    Switched,
    Whose,
    WorkerHangs,
    WorkerSettings,
    WorkerUp,
)
from mitmsec.core.model import Quic, UnprovenName
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import taking_in_s
from mitmsec.service.accounts import account_of
from mitmsec.service.aides import Aides
from mitmsec.service.answers import DEADLINE_S, Answers
from mitmsec.service.background import Background
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.children_ground import Ground, Jails
from mitmsec.service.gate_end import GateEnd
from mitmsec.service.jail import NETWORKED, Jail, spawn
from mitmsec.service.pulse import HANGS_S, Pulse
from mitmsec_redirect.connect_hook import ConnectHook

DRAIN_GRACE_S = 2.0
RESTART_PAUSE_S, REBUILD_PAUSE_S = 0.2, 5.0
RESTARTS_LIMIT, RESTARTS_S = 5, 60.0  # workers that die this often within a minute stay dead until it is over
QUEUED_LIMIT = 64  # of what can wait: orders, and answers to the gate's questions, are not to queue behind it
HEARD = (Ready, Fault, Whose, WorkerHangs, Draining, Drained, Governed, Switched, FlowsAnswer)  # of children


def begun(shared: Jails, role: Role, network: int | None = None, shows: tuple[str, ...] = ()) -> ChildProcess:
    """A gate, a worker, a broker or a scanner that waits for its settings. Raises OSError."""
    mountpoint = str(shared.state.jail)
    jail = Jail(role=role, account=account_of(role), mountpoint=mountpoint, network=network, shows=shows)
    return ChildProcess(role, partial(spawn, jail), shared.log, HEARD)


class GateAndWorkers:
    """Begun by `begin`; serving with `build`; ended by `drain` and `stop`, or `abandon`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.gate: ChildProcess | None = None
        self.workers: dict[int, ChildProcess] = {}
        self.cut = 0
        self.building = asyncio.Lock()
        """Held while children change places."""
        self._active: tuple[int, ...] = ()  # workers that new flows go to; numbers are never used again
        self._numbers = itertools.count()
        self._answers = Answers()
        self._gate_end: GateEnd | None = None
        self._pulse: Pulse | None = None  # of a gate that serves
        self._restarts: list[float] = []
        self._background = Background()
        self._closing = False
        self._aides = Aides(ground, self._begun_aide)

    @property
    def all(self) -> list[ChildProcess]:
        return [*([self.gate] if self.gate else []), *self.workers.values()]

    @property
    def aides(self) -> list[ChildProcess]:
        """Those that a worker's first question has begun."""
        return self._aides.all

    # -- begin ---------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Processes that do nothing yet. Raises OSError."""
        self.gate = begun(self._ground.shared, Role.GATE, self._ground.network)
        self._active = self._new_numbers()
        for number in self._active:
            self._begin_worker(number)

    async def build(self) -> None:
        """What was begun, up to a gate that accepts. Raises ChildFailed, OSError."""
        ground, shared = self._ground, self._ground.shared
        assert ground.hook is not None
        assert ground.scope is not None
        assert self.gate is not None
        gate = self.gate
        gate.on_message = lambda message, fds: self._gate_said(gate, message, fds)
        recorder = shared.recorder_channel(Role.GATE, ground.name)
        signer = shared.signer_channel(Role.GATE, ground.name)
        ground.scope.own(gate.pid)
        fds = [
            ground.policy_fd,
            ground.listeners[0].fileno(),
            recorder.fileno(),
            signer.fileno(),
            *ground.hook.ground.descriptors,
            *(listener.fileno() for listener in ground.listeners[1:]),
            *(ground.inward.descriptors if ground.inward is not None else ()),
            *([] if ground.names_fd is None else [ground.names_fd]),
            *self._probe_roots,
        ]
        settings = GateSettings(
            session=ground.name,
            on_failure=ground.policy.on_failure,
            has_v6=len(ground.listeners) > 1,
            capture=ground.capture_fd is not None,
            names=ground.names_fd is not None,
            relays=ground.relays is not None,
            off=shared.off,
            backend=ground.hook.kind,
            inward=ground.inward.count if ground.inward is not None else 0,
            local_ports=ground.hook.ground.local_ports,
            roots=bool(self._probe_roots),
        )
        with recorder, signer:
            answer = await gate.start(settings, *fds)
        if not isinstance(answer, Ready):
            raise ChildFailed(f"the gate answered {answer!r}")
        if ground.relays is not None:
            gate.channel.send(DnsRelays(), *ground.relays.descriptors())
        self.lead_quic(ground.policy)
        gate.watch(self._gate_exited)
        self._pulse = Pulse()
        await asyncio.gather(*map(self._start_worker, self._active))

    def lead_quic(self, policy: Policy) -> None:
        """Before the hook leads QUIC to the gate under this policy: what it relays by, once or again."""
        hook, relays = self._ground.hook, self._ground.quic_relays
        if isinstance(hook, ConnectHook) and hook.leads_quic(policy.quic) and self.gate is not None:
            self.gate.channel.send(QuicRelays(), hook.origins_fd, *(relay.fileno() for relay in relays))

    @property
    def _probe_roots(self) -> list[int]:
        """What the gate needs where a bypass by name has to be confirmed, if need be by the origin's certificate."""
        return [] if self._ground.policy.unproven_name is UnprovenName.ALLOW else [self._ground.roots_fd]

    def _new_numbers(self) -> tuple[int, ...]:
        return tuple(itertools.islice(self._numbers, self._ground.worker_count))

    def _begun_aide(self, role: Role, shows: tuple[str, ...] = ()) -> ChildProcess:
        return begun(self._ground.shared, role, self._ground.network if role in NETWORKED else None, shows)

    def _begin_worker(self, number: int) -> None:
        self.workers[number] = self._ground.shared.begun_worker()

    async def _start_worker(self, number: int, *, reserve: bool = False) -> None:
        ground, shared = self._ground, self._ground.shared
        worker = self.workers[number]
        gate_end, worker_end = pair()
        recorder = shared.recorder_channel(Role.WORKER, ground.name, number)
        signer = shared.signer_channel(Role.WORKER, ground.name, number)
        settings = WorkerSettings(
            session=ground.name, worker=number, on_failure=ground.policy.on_failure, own_pem=shared.own_pem,
            broker=True, scanner=ground.policy.scans, capture=ground.capture_fd is not None,
            quic=ground.policy.quic is Quic.DECRYPT,
        )  # fmt: skip
        with gate_end, worker_end, recorder, signer, self._aides.channels(number) as aides:
            fds = [worker_end.fileno(), signer.fileno(), recorder.fileno(), ground.roots_fd, ground.policy_fd]
            if ground.keys_fd is not None:
                fds.append(ground.keys_fd)
            try:
                await worker.start(settings, *fds, *aides)
            except ChildFailed:
                worker.kill()
                raise
            worker.watch(lambda status: self._worker_exited(number, status))
            if self.gate is not None:
                self.gate.channel.send(WorkerUp(worker=number, reserve=reserve), gate_end.fileno())

    # -- while it runs -------------------------------------------------------------------------------------------------
    def _gate_said(self, gate: ChildProcess, message: object, fds: list[int]) -> None:
        close_all(fds)
        match message:
            case Whose():
                self._ground.asked_whose(gate, message)
            case WorkerHangs(worker=number) if number in self.workers:
                self.workers[number].kill()  # the gate has recorded why; its exit is told like any other
            case Draining() if self._gate_end is not None:
                self._gate_end.goes_on()
            case Drained(cut=cut) if self._gate_end is not None:
                self.cut += cut
                self._gate_end.is_over()
            case Governed() | Switched() | FlowsAnswer():
                self._answers.heard(message)
            case Fault(what=what, detail=detail):
                self._ground.fault(what, detail)
            case _:
                pass

    def tell_gate(self, message: Message) -> bool:
        """For what many of may come, and can wait. False: no gate listens now; it may be told later."""
        if self._pulse is None or self.gate is None or self.gate.ended.done():
            return False
        if self.gate.channel.queued >= QUEUED_LIMIT:
            return False
        self.gate.channel.send(message)
        return True

    def feel_pulse(self) -> None:
        """End a gate or scanner that hangs: its exit is told and mended as ever. To be called ten times a second."""
        self._aides.feel_pulse()
        hook = self._ground.hook
        if hook is None or self.gate is None or self._pulse is None:
            return
        if self._pulse.hangs(hook.last_beat_ns, time.monotonic()):
            self._pulse = None
            self._ground.fault("gate_hangs", f"no heartbeat for {HANGS_S:.0f} s")
            self.gate.kill()

    def _gate_exited(self, status: int) -> None:
        self._pulse = None
        if self._ground.inward is not None:
            self._ground.inward.forget_legs()  # they ended with it, and others may have their addresses
        if not self._closing:
            self._ground.fault("gate_died", f"status {status}")
            self._background.begin(self.rebuild())

    def _worker_exited(self, number: int, status: int) -> None:
        if self._closing:
            return
        if number not in self._active:  # its policy is not in force any more, and its last flow has ended
            self._forget(number)
            return
        detail = f"worker {number}, status {status}"
        self._ground.shared.record(FaultSeen(what="worker_died", detail=detail, session=self._ground.name))
        self._background.begin(self._replace(number))

    def _forget(self, *numbers: int) -> None:
        for number in numbers:
            self.workers.pop(number, None)
        self._aides.forget(*numbers)

    async def _replace(self, number: int) -> None:
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if now - moment < RESTARTS_S] + [now]
        if len(self._restarts) > RESTARTS_LIMIT:
            why = "the supervisor's log says why they die"
            self._ground.fault("worker_left_dead", f"worker {number}, for a minute; {why}")
            await asyncio.sleep(RESTARTS_S)
        await asyncio.sleep(RESTART_PAUSE_S)
        async with self.building:
            if number in self._active and self.workers[number].ended.done():  # else a rebuild has replaced it
                try:
                    self._begin_worker(number)
                    await self._start_worker(number)
                except (ChildFailed, OSError) as error:
                    self._ground.fault("worker_not_started", f"worker {number}: {error}")
                    self._background.begin(self._replace(number))

    # -- orders --------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def successors(self) -> AsyncIterator[tuple[int, ...]]:
        """Workers in reserve, with the policy that the ground has by now; dismissed where the block raises.

        After the block they are the ones that new flows go to. `building` is to be held. Raises ChildFailed, OSError.
        """
        before, numbers = self._active, self._new_numbers()
        elder = self._aides.succeed()
        self._active = before + numbers  # whoever of them dies is replaced
        try:
            for number in numbers:
                self._begin_worker(number)
            await asyncio.gather(*(self._start_worker(number, reserve=True) for number in numbers))
            yield numbers
        except BaseException:
            self._active = before
            self._aides.go_back(elder)
            dismissed = [self.workers[number] for number in numbers if number in self.workers]
            self._forget(*numbers)
            await asyncio.gather(*(worker.stop() for worker in dismissed))
            raise
        self._active = numbers
        living = {number for number, worker in self.workers.items() if not worker.ended.done()}
        self._forget(*(number for number in before if number not in living))  # those that nobody replaces now

    async def govern(self, numbers: tuple[int, ...]) -> None:
        """The gate decides by the ground's policy from now on, and hands new flows to these workers."""
        if self.gate is None:
            raise ChildFailed("there is no gate")
        order = Govern(on_failure=self._ground.policy.on_failure, workers=numbers)
        deadline_s = DEADLINE_S + taking_in_s(self._ground.policy)
        fds = self._ground.policy_fd, *self._probe_roots
        await self._answers.ask(self.gate, order, *fds, answer=Governed, deadline_s=deadline_s)

    async def switch(self, *, off: bool) -> int:
        """Throw the kill switch, or let decrypting begin again; how many decrypted flows were cut."""
        if self.gate is None or self.gate.ended.done():
            return 0  # the next one is told as it starts
        try:
            return (await self._answers.ask(self.gate, Switch(off=off), answer=Switched)).cut
        except (ChildFailed, OSError):
            self.gate.kill()  # it does not answer, and must not go on decrypting: the next one is told as it starts
            return 0

    async def flows(self) -> FlowsAnswer:
        """How many live, and what the gate has learned; nothing where no gate answers."""
        try:
            if self.gate is not None and not self.gate.ended.done():
                return await self._answers.ask(self.gate, FlowsQuestion(), answer=FlowsAnswer, deadline_s=1.0)
        except ChildFailed:
            pass
        return FlowsAnswer(live=0, decrypted=0)

    # -- failures and ends ---------------------------------------------------------------------------------------------
    def silence(self) -> None:
        """Follow `on_failure` at once: the gate goes, so that no heartbeat of its own says otherwise."""
        self._pulse = None
        if self._ground.hook is not None:
            self._ground.hook.stall()
        if self.gate is not None:
            self.gate.unwatch()
            self.gate.kill()

    async def rebuild(self) -> None:
        """New gate and workers on the same listeners; until then the hook follows `on_failure`."""
        async with self.building:
            if self._closing or self._ground.hook is None:
                return
            self.silence()
            for child in self.all:
                child.unwatch()
                child.kill()
                await child.ended
            self._forget(*self.workers)
            if self._ground.inward is not None:
                self._ground.inward.forget_legs()
            try:
                self.begin()
                await self.build()
            except (ChildFailed, OSError) as error:
                self._ground.fault("rebuild_failed", str(error))
                self._background.begin(self._rebuild_later())

    async def _rebuild_later(self) -> None:
        await asyncio.sleep(REBUILD_PAUSE_S)
        await self.rebuild()

    def abandon(self) -> None:
        """End as with a killed supervisor: nobody is told, nothing is drained."""
        self._closing = True
        self.silence()
        self._aides.abandon()
        for child in self.workers.values():
            child.unwatch()
            child.kill()

    def replace_no_more(self) -> None:
        """The first part of an orderly end."""
        self._closing = True
        self._background.cancel()

    async def drain(self) -> None:
        """The gate ends its flows, for as long as it gets on with that.

        The ends of others are not recorded, and a fault says so.
        """
        if self.gate is None or self._pulse is None or self.gate.ended.done():
            return  # none that serves
        end = self._gate_end = GateEnd()
        self.gate.channel.send(Drain(grace_s=DRAIN_GRACE_S))
        if not await end.came(self.gate.ended):
            why = f"not all of its flows had ended on record after {end.waited_s:.0f} s"
            self._ground.fault("gate_not_drained", why)

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self.all), self._aides.stop())
