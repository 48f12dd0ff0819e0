"""The gate's composition root: traffic in, decisions out; no key, no plaintext of TLS.

    supervisor ── GateSettings ─► Ready · WorkerUp, WhoseAnswer, UdpFlowTold, Drain ─►   ◄─ Whose, WorkerHangs, …
    program    ── question, led here ─► relay ─► its name server                               (under `start`)
    kernel     ── accepted socket ─► cookie ─► origins map          heartbeat map ◄── this loop     (connect_hook)
                                  └► conntrack                      eventfd ◄── this loop           (nftables)
                          └► what was told before           eventfd ◄── this loop           (windivert)

All of the run's listeners, maps and channels come by descriptor: the process itself opens nothing but connections to
decided origins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import assert_never

import msgspec

from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import (
    Crls,
    DnsRelays,
    Drain,
    Drained,
    Fault,
    FlowsAnswer,
    FlowsQuestion,
    GateSettings,
    Govern,
    Governed,
    Message,
    Ready,
    Switch,
    Switched,
    UdpFlowTold,
    Whose,
    WhoseAnswer,
    WorkerHangs,
    WorkerUp,
)
from mitmsec.core.model import Endpoint, OnFailure
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import unpacked
from mitmsec.gate.dns_relay import DnsRelay
from mitmsec.gate.loop import Gate, Origins, Surroundings
from mitmsec.gate.origin_probe import OriginProbe
from mitmsec.gate.signals import Origin
from mitmsec.gate.terms import Terms
from mitmsec.service import child
from mitmsec.service.dns_names import DnsNames, copies
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.dns_lead import LedServers
from mitmsec_redirect.expected_flows import ExpectedFlows
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.legs import Leg, Legs
from mitmsec_redirect.original_destination import original_destination
from mitmsec_redirect.origins import OriginTable
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.sockdiag import CookieLookup

UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound


type Order = WorkerUp | DnsRelays | WhoseAnswer | UdpFlowTold | Govern | Switch | FlowsQuestion | Drain
ORDERS: tuple[type[Message], ...] = (
    WorkerUp, DnsRelays, WhoseAnswer, UdpFlowTold, Govern, Switch, FlowsQuestion, Drain,
)  # fmt: skip
LEGS_LIMIT = 16  # of one connection that came in
EVENTS_LIMIT = 65536  # as many flows may end at once as can be open at once, and each is an event
EVENTS_LIMIT_BYTES = 64 << 20


class HookOrigins:
    """Origins of connections that the connect hook diverted (mitmsec.gate.loop.Origins)."""

    def __init__(self, map_fd: int) -> None:
        self._table = OriginTable(map_fd)
        self._cookies = CookieLookup()

    def find(self, accepted: socket.socket) -> Origin | None:
        """By the cookie of the client's own socket, which nobody can forge. Raises OSError."""
        client, gate = accepted.getpeername(), accepted.getsockname()
        cookie = self._cookies.cookie_of(Endpoint.of(client[0], client[1]), Endpoint.of(gate[0], gate[1]))
        origin = None if cookie is None else self._table.find(cookie)
        if cookie is None or origin is None:
            return None
        self._table.forget(cookie)
        bound = origin.bound.address if origin.bound and origin.bound.address not in UNSPECIFIED else None
        return Origin(
            remote=origin.remote,
            pid=origin.pid,
            uid=origin.uid,
            comm=origin.comm,
            bound=bound,
            connected_ns=origin.connected_ns,
            source=bound or origin.source,
            caller=origin.caller,
            selected=origin.selected,
        )


class NatOrigins:
    """Origins of connections that rules of nftables redirected (mitmsec.gate.loop.Origins)."""

    def find(self, accepted: socket.socket) -> Origin | None:
        """By what conntrack says of the accepted socket. Whose it is, only root can find out. Raises OSError."""
        remote = original_destination(accepted)
        if remote is None:
            return None
        client = Endpoint.of(*accepted.getpeername()[:2])
        return Origin(remote=remote, pid=0, uid=-1, comm="", source=client.address, client=client)


class LedWay:
    """How the gate reaches whom one connection was meant for (mitmsec.gate.inward.Way)."""

    def __init__(self, begin: Callable[[], Leg]) -> None:
        """`begin` tells the kernel of a leg for this connection. Raises OSError."""
        leg = begin()
        self._begin, self._legs = begin, [leg]
        self._next: Leg | None = leg
        self.is_ours = leg.listener is not None
        who = leg.listener
        self.origin = Origin(remote=leg.called, pid=0, uid=-1, comm="")
        if who is not None:
            self.origin = Origin(
                remote=leg.called,
                pid=who.pid,
                uid=who.uid,
                comm=who.comm,
                connected_ns=who.at_ns,
                caller=who.caller,
                selected=who.by_selected,
            )

    def connect(self) -> socket.socket:
        """The first leg, then further ones, as long as somebody of ours would get them."""
        leg, self._next = self._next, None
        if leg is None:
            leg = self._begin()
            self._legs.append(leg)
            if len(self._legs) > LEGS_LIMIT:
                self._legs.pop(0).close()  # long over: the flow's worker may have no more than this under way
            if leg.listener is None:
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return leg.connect()

    def close(self) -> None:
        for leg in self._legs:
            leg.close()


class LedWays:
    """Ways of connections that came in and were led here (mitmsec.gate.inward.Ways)."""

    def __init__(self, legs_fd: int, listeners_fd: int) -> None:
        self._legs = Legs(legs_fd, listeners_fd)

    def begin(self, accepted: socket.socket) -> LedWay:
        """Told to the kernel, not yet gone. Raises OSError."""
        return LedWay(lambda: self._legs.begin(accepted))


class ToldOrigins:
    """Origins of connections that `windivert` leads here packet by packet (mitmsec.gate.loop.Origins)."""

    def __init__(self, told_fd: int, heartbeat: Pulse) -> None:
        self._flows = ExpectedFlows(socket.socket(fileno=told_fd))
        self._heartbeat = heartbeat

    def find(self, accepted: socket.socket) -> Origin | None:
        """By the two ends that the accepted socket has: they were told before. Raises OSError."""
        client, gate = (Endpoint.of(*name[:2]) for name in (accepted.getpeername(), accepted.getsockname()))
        flow = self._flows.find(client, gate, time.monotonic())
        if flow is None:
            return None
        origin = flow.origin
        return Origin(
            remote=origin.remote,
            pid=origin.pid,
            uid=origin.uid,
            comm=origin.comm,
            connected_ns=origin.connected_ns,
            source=origin.source,
            caller=origin.caller,
            selected=origin.selected,
            told=flow.process,
        )

    def beat(self) -> None:
        """Alive, and with room for more to be told."""
        self._flows.hear(time.monotonic())
        self._heartbeat.beat()


def _given(kind: BackendKind, fds: list[int]) -> tuple[Origins, Callable[[], None]]:
    """Where origins are found, and how to beat. Raises ValueError for a backend that no gate serves yet."""
    match kind:
        case BackendKind.CONNECT_HOOK:
            origins_fd, heartbeat_fd = fds
            return HookOrigins(origins_fd), Heartbeat(heartbeat_fd).beat
        case BackendKind.NFTABLES:
            (pulse_fd,) = fds
            return NatOrigins(), Pulse(pulse_fd).beat
        case BackendKind.WINDIVERT:
            told_fd, pulse_fd = fds
            told = ToldOrigins(told_fd, Pulse(pulse_fd))
            return told, told.beat
        case BackendKind.REPLAY:
            raise ValueError(f"no gate serves {kind}")
        case _:
            assert_never(kind)


class GateProgram:
    """Program of the gate process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._gate: Gate | None = None
        self._names: DnsNames | None = None
        self._relay: DnsRelay | None = None
        self._terms = Terms(on_failure=OnFailure.CLOSED)
        self._local_ports: range | None = None
        self._draining: asyncio.Task[None] | None = None
        self._governing: asyncio.Task[None] | None = None

    async def start(self, settings: GateSettings, fds: list[int]) -> Message:
        """Accept from now on. Raises ValueError, msgspec.ValidationError for settings that make no gate."""
        policy_fd, v4_fd, recorder_fd, signer_fd, *others = fds
        kind = BackendKind(settings.backend)
        roots_pem = _read(others.pop()) if settings.roots else b""
        if settings.names or settings.relays:
            self._names = DnsNames(copies(others.pop(), kind) if settings.names else None)
        ways, inward = None, [others.pop() for _ in range(settings.inward)]
        if inward:
            listeners_fd, legs_fd = others.pop(), others.pop()
            ways = LedWays(legs_fd, listeners_fd)
        v6_fds = [others.pop()] if settings.has_v6 and others else []
        origins, beat = _given(kind, others)
        policy = await _arranged(_read(policy_fd))
        around = Surroundings(
            origins=origins,
            recorder=Producer(
                socket.socket(fileno=recorder_fd),
                asyncio.get_running_loop(),
                limit=EVENTS_LIMIT,
                limit_bytes=EVENTS_LIMIT_BYTES,
            ),
            signer=Channel(socket.socket(fileno=signer_fd), [Crls]),
            ask=self._ask,
            beat=beat,
            hangs=self._hangs,
            ways=ways,
            names_of=self._names.names_of if self._names is not None else lambda address: None,
            dns=self._names.hear if self._names is not None else None,
        )
        ports = settings.local_ports
        self._local_ports = None if ports is None else range(ports[0], ports[1] + 1)
        probe = self._probe(roots_pem)
        self._terms = Terms(
            on_failure=settings.on_failure,
            policy=policy.fingerprint,
            capture=settings.capture,
            probes=probe is not None,
            hello_deadline_s=settings.hello_deadline_s,
        )
        self._gate = Gate(
            [socket.socket(fileno=fd) for fd in (v4_fd, *v6_fds)],
            around,
            policy,
            self._terms,
            session=settings.session,
            connect_deadline_s=settings.connect_deadline_s,
            heartbeat_s=settings.heartbeat_s,
            inward=[socket.socket(fileno=fd) for fd in inward],
            local_ports=self._local_ports,
            probe=probe,
        )
        self._gate.switch(off=settings.off)
        self._gate.open()
        return Ready()

    def told(self, message: Order, fds: list[int]) -> None:
        """A later message of the supervisor."""
        assert self._gate is not None
        match message:
            case WorkerUp(worker=worker, reserve=reserve) if len(fds) == 1:
                self._gate.crew.up(worker, fds.pop(), reserve=reserve)
            case WorkerUp():
                pass
            case DnsRelays() if self._names is not None and self._relay is None and len(fds) >= 3:
                servers, behind, led, *sockets = fds
                fds.clear()
                relays = [socket.socket(fileno=fd) for fd in sockets]
                self._relay = DnsRelay(relays, LedServers(servers, behind, led), self._names.hear)
            case DnsRelays():
                pass
            case WhoseAnswer(number=number, process=process, selected=selected):
                self._gate.owner(number, process, selected=selected)
            case UdpFlowTold():
                self._gate.datagrams(message)
            case Govern(on_failure=on_failure, workers=workers) if len(fds) in (1, 2):
                self._gate.hold()
                content, roots_pem = _read(fds.pop(0)), _read(fds.pop()) if fds else b""
                governing = self._govern(self._gate, content, roots_pem, on_failure, workers)
                self._governing = asyncio.create_task(governing)
            case Govern():
                pass
            case Switch(off=off):
                self._control.send(Switched(cut=self._gate.switch(off=off)))
            case FlowsQuestion():
                gate = self._gate
                answer = FlowsAnswer(live=gate.live, decrypted=gate.decrypted, learned=tuple(gate.learned))
                self._control.send(answer)
            case Drain(grace_s=grace_s):
                self._draining = self._draining or asyncio.create_task(self._drain(self._gate, grace_s))
            case _:
                assert_never(message)
        close_all(fds)

    async def stop(self) -> None:
        """The supervisor has gone or wants an end: flows are reset, and on record when this returns."""
        for task in (self._draining, self._governing):
            if task is not None:
                task.cancel()
        if self._gate is not None:
            await self._gate.close()
        if self._relay is not None:
            self._relay.close()
        if self._names is not None:
            self._names.close()

    async def _govern(
        self, gate: Gate, content: bytes, roots_pem: bytes, on_failure: OnFailure, workers: tuple[int, ...]
    ) -> None:
        """One that cannot is no gate: it accepts nobody, so its end is what the supervisor is to see, at once."""
        try:
            policy, probe = await _arranged(content), self._probe(roots_pem)
            self._terms = msgspec.structs.replace(
                self._terms, on_failure=on_failure, policy=policy.fingerprint, probes=probe is not None
            )
            gate.govern(policy, self._terms, workers, probe)
            self._control.send(Governed())
        except Exception as error:
            traceback.print_exc()
            self._control.send(Fault(what="policy_not_taken", detail=type(error).__name__))
            raise SystemExit(1) from None

    def _probe(self, roots_pem: bytes) -> OriginProbe | None:
        return OriginProbe(roots_pem, local_ports=self._local_ports) if roots_pem else None

    def _ask(self, number: int, origin: Origin) -> None:
        self._control.send(
            Whose(
                number=number,
                pid=origin.pid,
                uid=origin.uid,
                comm=origin.comm,
                connected_ns=origin.connected_ns,
                client=origin.client,
                remote=origin.remote if origin.client is not None else None,
                caller=origin.caller,
                selected=origin.selected,
                told=origin.told,
            )
        )

    def _hangs(self, worker: int) -> None:
        with contextlib.suppress(ChannelFull):  # a supervisor that hangs itself
            self._control.send(WorkerHangs(worker=worker))

    async def _drain(self, gate: Gate, grace_s: float) -> None:
        cut = await gate.drain(grace_s)
        try:
            self._control.send(Drained(cut=cut))
        except ChannelFull:  # a supervisor that does not listen: it will end us, with or without our word
            self._control.close()


async def _arranged(content: bytes) -> Policy:
    """A packed policy, ready to be asked. Long lists take a second: live flows and heartbeats go on meanwhile."""
    policy = unpacked(content)
    for _ in policy.listed.filling():
        await asyncio.sleep(0)
    return policy


def _read(fd: int) -> bytes:
    """All of a memfd, wherever the offset stands that it shares with the supervisor's."""
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main([GateSettings, *ORDERS], GateProgram)
