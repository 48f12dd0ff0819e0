"""The gate: one event loop, no thread, no task for a connection.

    listeners ─ accept in bursts ─► origin by socket cookie ─► Connection ─ Ask ─► supervisor ─ owner ─► …
    supervisor ─ WorkerUp, Drain ─►
    every heartbeat_s ─► heartbeat map       a loop that hangs is seen by the hook, which then follows `on_failure`
    every second ─► faults added up, flows that live long put on record

Descriptors are the limit of everything here: each flow may take two, so `flows_limit` follows from RLIMIT_NOFILE. At
the limit the oldest flow that has not said a byte makes room; when all have spoken, the new one is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.channel import ChannelFull, close_all
from mitmsec.core.messages import Crls, MintDecision, MintWithdrawn, UdpFlowTold
from mitmsec.core.model import Direction, Endpoint, LearnedBypass, OnFailure, Process
from mitmsec.gate import datagrams
from mitmsec.gate import signals as s
from mitmsec.gate.asking import Asking
from mitmsec.gate.colleagues import Colleagues
from mitmsec.gate.connection import Connection, Means
from mitmsec.gate.crew import Crew
from mitmsec.gate.crl_origin import CrlOrigin
from mitmsec.gate.descriptors import flows_limit, has_backlog
from mitmsec.gate.faults import Faults
from mitmsec.gate.hangups import Hangups
from mitmsec.gate.ids import flow_id
from mitmsec.gate.inward import Inward
from mitmsec.gate.lean_loop import LeanLoop
from mitmsec.gate.learned import Learned
from mitmsec.gate.loans import Loans
from mitmsec.gate.names import Names
from mitmsec.gate.origin_probe import OriginProbe
from mitmsec.gate.quic_decrypting import Decrypting
from mitmsec.gate.quic_ground import Around
from mitmsec.gate.quic_relay import QuicRelay
from mitmsec.gate.refuse import reset
from mitmsec.gate.splice import Pipes
from mitmsec.gate.surroundings import Surroundings
from mitmsec.gate.tee import Taps
from mitmsec.gate.terms import Decides, State, Terms

ACCEPT_BURST = 64  # connections before others have their turn
BACKLOG_LIMIT = 4096  # of a listener: what arrives while it is taken has come after the end
TICK_S = 1.0
LONG_LIVED_S = 10.0
ACCEPT_PAUSE_S = 0.1  # when there is no descriptor left to accept with
FLUSH_QUIET_S = 10.0  # for a recorder that is busy to have something more on disk at the end
FLUSH_LIMIT_S = 120.0  # to have everything there: tens of thousands may end at once
CUT_BURST = 256  # flows that are cut before the heart may beat

log = logging.getLogger(__name__)


class Gate:
    """Accepts on `listeners`, which it owns, from `open` until `drain` or `close`."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        around: Surroundings,
        policy: Decides,
        terms: Terms,
        *,
        session: str = "",
        connect_deadline_s: float = 30.0,
        heartbeat_s: float = 0.2,
        limit: int | None = None,
        inward: Sequence[socket.socket] = (),
        local_ports: range | None = None,
        probe: OriginProbe | None = None,
    ) -> None:
        """`inward` are listeners for connections that came in and were led here; owned like the others, and `probe`."""
        loop = self._loop = asyncio.get_running_loop()
        self._listeners, self._around, self._terms = [*listeners, *inward], around, terms
        self._is_held = False
        self._quic: QuicRelay | None = None
        self._inward = frozenset(inward)
        self._heartbeat_s, self._limit = heartbeat_s, limit or flows_limit()
        self._flows: dict[str, Connection] = {}
        self._silent: dict[str, Connection] = {}  # in the order of their arrival
        self._young: deque[tuple[float, str]] = deque()
        self._asking = Asking(around.ask, loop.time)
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._colleagues = Colleagues(around.recorder)
        self._pipes = Pipes()
        self._lean = LeanLoop(loop)
        self._faults = Faults(around.recorder.record, session)
        self.crew = Crew(loop, self._faults, around.hangs)
        self._hangups = Hangups(loop)
        self._learned = Learned()
        self._decrypting = Decrypting(self._colleagues, self._learned)
        self._loans = Loans(loop, self._hangups)
        self._crls = CrlOrigin(loop)
        self._taps = Taps(loop, around.recorder, terms.on_failure)
        self._means = Means(
            loop=self._lean,
            terms=terms,
            connect_deadline_s=connect_deadline_s,
            local_ports=local_ports,
            policy=policy,
            names=Names(),
            learned=self._learned,
            health=self._colleagues,
            crew=self.crew,
            hangups=self._hangups,
            loans=self._loans,
            pipes=self._pipes,
            taps=self._taps,
            faults=self._faults,
            record=around.recorder.record,
            ask=self._asking.ask,
            mint=self._mint,
            withdraw=self._withdraw,
            spoke=self._spoke,
            over=self._over,
            crls=self._crls,
            dns=around.dns,
            probe=probe,
        )
        around.signer.attach(loop, self._signer_said, self._signer_gone)

    @property
    def live(self) -> int:
        """Flows that have not ended. Of QUIC, those that a worker has."""
        return len(self._flows) + (self._quic.decrypted if self._quic is not None else 0)

    def open(self) -> None:
        """Begin to accept."""
        self._beat()
        self._tick()
        for listener in self._listeners:
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # and what it accepts
            self._loop.add_reader(listener, self._acceptable, listener)

    def owner(self, number: int, process: Process, *, selected: bool = True) -> None:
        """The supervisor's answer to `ask`."""
        self._asking.answered(number, process, selected=selected)

    def datagrams(self, told: UdpFlowTold) -> None:
        """Put a UDP flow on record, which went past us."""
        resolved, means = self._around.names_of(told.remote.address), self._means
        self._around.recorder.record(datagrams.seen(told, means.policy, time.time(), resolved, means.terms.policy))

    def lead_quic(self, relay: Callable[[Around], QuicRelay]) -> None:
        """Relay QUIC that is led here, too; `relay` makes what does that, which is ours then. To be called once."""
        around, asking = self._around, self._asking
        quic = self._quic = relay(
            Around(
                lambda: (self._means.policy, self._means.terms), around.recorder.record,
                lambda: self._colleagues.recording, self._faults, asking.ask, asking.give_up, around.names_of,
                self.crew, self._mint, self._withdraw, self._decrypting,
            )
        )  # fmt: skip
        self._limit -= quic.descriptors // 2  # a connection takes two

    def hold(self) -> None:
        """Accept nothing before `govern`: the hook selects by the coming policy already, and none else may decide."""
        self._is_held = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        if self._quic is not None:
            self._quic.hold()

    def govern(self, policy: Decides, terms: Terms, workers: Collection[int], probe: OriginProbe | None = None) -> None:
        """Flows that are accepted from now on are decided by `policy`, and go to no worker but these."""
        self._terms = terms
        self._asking.forget()
        self._learned.forget()
        self._decrypting.forget()
        self._taps.on_failure = terms.on_failure
        self._means = replace(self._means, policy=policy, terms=terms, probe=probe)
        self.crew.keep_only(workers)
        self._is_held = False
        for listener in self._listeners:
            self._resume(listener)
        if self._quic is not None:
            self._quic.resume()

    def switch(self, *, off: bool) -> int:
        """Off: nothing is decrypted from now on, and what is being decrypted is cut; the number of those."""
        self._colleagues.off = off
        live = [flow for flow in self._flows.values() if flow.flow.state in (State.HANDED, State.STAFF)] if off else []
        for connection in live:
            connection.cut(s.Cut("switched off"))
        over_quic = self._quic.switch_off() if off and self._quic is not None else 0
        return len(live) + over_quic

    @property
    def on_disk(self) -> int:
        """Events of this gate that are."""
        return self._around.recorder.committed

    @property
    def decrypted(self) -> int:
        """Flows that a worker has."""
        over_quic = self._quic.decrypted if self._quic is not None else 0
        return over_quic + sum(flow.flow.state is State.HANDED for flow in self._flows.values())

    @property
    def learned(self) -> Sequence[LearnedBypass]:
        """What is let pass, because it could not be decrypted."""
        return self._learned.told(self._loop.time())

    async def drain(self, grace_s: float) -> int:
        """Accept what has arrived and nothing more, give live flows `grace_s` to end; the number that had to be cut."""
        until_s = self._loop.time() + grace_s
        self._stop_accepting(take_backlog=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace_s)
        cut = await self._cut_all("the run has ended")
        if self._quic is not None:
            await self._quic.drain(until_s - self._loop.time())
            self._quic.end_all()
        await self._flushed()
        return cut

    async def close(self) -> None:
        """Cut what is left, and return when the record is complete. `beat` is not called any more."""
        self._stop_accepting(take_backlog=False)
        await self._cut_all("the gate has ended")
        if self._quic is not None:
            self._quic.close()
        await self._flushed()
        for timer in self._timers.values():
            timer.cancel()
        means, around = self._means, self._around
        for one in (means.probe, self.crew, self._taps, self._loans, self._crls, self._hangups, self._pipes):
            if one is not None:
                one.close()
        self._lean.close()
        around.signer.close()
        around.recorder.close()

    # -- accepting -----------------------------------------------------------------------------------------------------
    def _acceptable(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BURST):
            if not self._accept(listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Whether there may be more."""
        try:
            client, peer = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return error.errno == errno.ECONNABORTED
            if not has_backlog(listener):  # accept() takes a descriptor before it looks whether anybody waits
                return False
            return self._shed("no_descriptors") or self._pause(listener)
        client.setblocking(False)
        if len(self._flows) >= self._limit and not self._shed("flow_limit"):
            self._faults.saw("flow_limit", OnFailure.CLOSED, f"{self._limit} flows, none of them silent")
            reset(client)
            return True
        try:
            self._enter(listener, client, peer) if listener in self._inward else self._begin(client, peer)
        except OSError as error:  # gone again, or the kernel does not say whose it is
            self._faults.saw("origin_lookup_failed", OnFailure.CLOSED, errno.errorcode.get(error.errno or 0, "?"))
            reset(client)
        return True

    def _begin(self, client: socket.socket, peer: tuple[str, int]) -> None:
        caller, here = Endpoint.of(*peer[:2]), Endpoint.of(*client.getsockname()[:2])
        origin = self._around.origins.find(client, caller, here)
        connection = self._new(self._means, client)
        if origin is not None:
            connection.flow.about.resolved = self._around.names_of(origin.remote.address)
        connection.accepted(caller, here, origin)

    def _enter(self, listener: socket.socket, client: socket.socket, peer: tuple[str, int]) -> None:
        """It came in. Whoever calls the listener's own address means us, and was led here by nobody: a stranger."""
        here, caller = Endpoint.of(*client.getsockname()[:2]), Endpoint.of(peer[0], peer[1])
        is_led = here != Endpoint.of(*listener.getsockname()[:2])
        way = self._around.ways.begin(client) if is_led and self._around.ways is not None else None
        means = replace(self._means, policy=Inward(self._means.policy, caller), names=Names())
        connection = self._new(means, client)
        connection.flow.about.direction = Direction.INBOUND
        connection.accepted(caller, here, None if way is None else way.origin, way)
        if way is not None and not way.is_ours:
            connection.tell(s.OwnerKnown(Process(pid=0), selected=False))

    def _new(self, means: Means, client: socket.socket) -> Connection:
        connection = Connection(means, flow_id(), client)
        self._flows[connection.id] = self._silent[connection.id] = connection
        self._young.append((self._loop.time(), connection.id))
        self._empty.clear()
        return connection

    def _shed(self, what: str) -> bool:
        """Make room: cut the oldest flow that has not said a byte. False: there is none."""
        silent = next(iter(self._silent.values()), None)
        if silent is None:
            return False
        self._faults.saw(what, OnFailure.CLOSED, "the oldest silent flow made room")
        silent.cut(s.Cut(what, Outcome.FAULT))
        return True

    def _pause(self, listener: socket.socket) -> bool:
        """Whoever has come waits in the kernel's queue; nothing is decided about it yet."""
        self._faults.saw("no_descriptors", detail="new connections wait")
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE_S, self._resume, listener)
        return False

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0 and not self._is_held:
            self._loop.add_reader(listener, self._acceptable, listener)

    def _stop_accepting(self, *, take_backlog: bool) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            for _ in range(BACKLOG_LIMIT if take_backlog else 0):
                if not self._accept(listener):
                    break
            self._loop.remove_reader(listener)
            listener.close()

    # -- what connections need -----------------------------------------------------------------------------------------
    def _signer_said(self, message: Crls, fds: list[int]) -> None:
        close_all(fds)
        self._crls.lists = dict(message.lists)

    def _mint(self, flow: str, name: str) -> None:
        try:
            self._around.signer.send(MintDecision(flow=flow, name=name))
        except ChannelFull:
            self._around.signer.close()
            self._signer_gone()

    def _withdraw(self, flow: str) -> None:
        with contextlib.suppress(ChannelFull):
            self._around.signer.send(MintWithdrawn(flow=flow))

    def _signer_gone(self) -> None:
        self._colleagues.signing = False
        self._faults.saw("signer_gone", self._terms.on_failure)

    def _spoke(self, connection: Connection) -> None:
        self._silent.pop(connection.id, None)

    def _over(self, connection: Connection) -> None:
        self._flows.pop(connection.id, None)
        self._silent.pop(connection.id, None)
        self._asking.give_up(connection)
        if not self._flows:
            self._empty.set()

    # -- time ----------------------------------------------------------------------------------------------------------
    def _beat(self) -> None:
        self._around.beat()
        self.crew.check(self._loop.time())
        self._timers[self._beat] = self._loop.call_later(self._heartbeat_s, self._beat)

    def _tick(self) -> None:
        self._timers[self._tick] = self._loop.call_later(TICK_S, self._tick)
        self._faults.tick()
        old_s = self._loop.time() - LONG_LIVED_S
        while self._young and self._young[0][0] <= old_s:
            connection = self._flows.get(self._young.popleft()[1])
            if connection is not None:
                connection.long_lived()

    # -- the end -------------------------------------------------------------------------------------------------------
    async def _cut_all(self, why: str) -> int:
        """In turns: a gate whose heart stands still for as long as ten thousand take would be ended for it."""
        connections = list(self._flows.values())
        cut = 0
        for number, connection in enumerate(connections, 1):
            if connection.id in self._flows:  # it has not ended meanwhile
                connection.cut(s.Cut(why))
                cut += 1
            if number % CUT_BURST == 0:
                await asyncio.sleep(0)
        return cut

    async def _flushed(self) -> None:
        self._faults.tick()
        await self._around.recorder.flushed_while_it_moves(quiet_s=FLUSH_QUIET_S, limit_s=FLUSH_LIMIT_S)
