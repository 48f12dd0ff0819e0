"""The gate's composition root: traffic in, decisions out; no key, no plaintext of TLS.

    supervisor ── GateSettings ─► Ready · WorkerUp, WhoseAnswer, UdpFlowTold, Drain ─►   ◄─ Whose, WorkerHangs, …
    program    ── question, led here ─► relay ─► its name server                               (under `start`)
    program    ── QUIC, led here ─► relay ─► its origin                      (where the policy lets QUIC pass)
    kernel     ── accepted socket ─► cookie ─► origins map          heartbeat map ◄── this loop     (connect_hook)
                                  └► conntrack                      eventfd ◄── this loop           (nftables)
                          └► what was told before           eventfd ◄── this loop           (windivert)

All of the run's listeners, maps and channels come by descriptor: the process itself opens nothing but connections to
decided origins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import traceback
from typing import assert_never

import msgspec

from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.dns_offers import limited
from mitmsec.core.messages import (
    Crls,
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
    Switch,
    Switched,
    UdpFlowTold,
    Whose,
    WhoseAnswer,
    WorkerHangs,
    WorkerUp,
)
from mitmsec.core.model import OnFailure, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import unpacked
from mitmsec.gate.dns_relay import DnsRelay
from mitmsec.gate.loop import Gate
from mitmsec.gate.origin_probe import OriginProbe
from mitmsec.gate.quic_relay import QuicRelay
from mitmsec.gate.signals import Origin
from mitmsec.gate.surroundings import Surroundings
from mitmsec.gate.terms import Terms
from mitmsec.service import child
from mitmsec.service.dns_names import DnsNames, copies
from mitmsec.service.gate_origins import LedWays, QuicOrigins, given
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.dns_lead import LedServers

type Order = WorkerUp | DnsRelays | QuicRelays | WhoseAnswer | UdpFlowTold | Govern | Switch | FlowsQuestion | Drain
ORDERS: tuple[type[Message], ...] = (
    WorkerUp, DnsRelays, QuicRelays, WhoseAnswer, UdpFlowTold, Govern, Switch, FlowsQuestion, Drain,
)  # fmt: skip
EVENTS_LIMIT = 65536  # as many flows may end at once as can be open at once, and each is an event
EVENTS_LIMIT_BYTES = 64 << 20
DRAINING_S = 1.0  # between two words on it


class GateProgram:
    """Program of the gate process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._gate: Gate | None = None
        self._names: DnsNames | None = None
        self._relay: DnsRelay | None = None
        self._leads_quic = False
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
        origins, beat = given(kind, others)
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
            offers=policy.offers,
            capture=settings.capture,
            decrypts_quic=policy.quic is Quic.DECRYPT,
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
            case DnsRelays() if self._names is not None and self._relay is None and len(fds) >= 3:
                servers, behind, led, *sockets = fds
                fds.clear()
                relays = [socket.socket(fileno=fd) for fd in sockets]
                led_servers = LedServers(servers, behind, led)
                self._relay = DnsRelay(relays, led_servers, self._names.hear, self._limited)
            case QuicRelays() if not self._leads_quic and len(fds) >= 2:
                self._lead_quic(self._gate, fds.pop(0), [socket.socket(fileno=fds.pop()) for _ in range(len(fds))])
            case WhoseAnswer(number=number, process=process, selected=selected):
                self._gate.owner(number, process, selected=selected)
            case UdpFlowTold():
                self._gate.datagrams(message)
            case Govern(on_failure=on_failure, workers=workers) if len(fds) in (1, 2):
                self._gate.hold()
                content, roots_pem = _read(fds.pop(0)), _read(fds.pop()) if fds else b""
                governing = self._govern(self._gate, content, roots_pem, on_failure, workers)
                self._governing = asyncio.create_task(governing)
            case WorkerUp() | DnsRelays() | QuicRelays() | Govern():
                pass  # without what belongs to it, or there already
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

    def _lead_quic(self, gate: Gate, origins_fd: int, sockets: list[socket.socket]) -> None:
        """Only then is there anything here that can decipher: what seals a QUIC client's first packets is no secret."""
        from mitmsec_certs.packet_cipher import Aes128

        self._leads_quic = True
        gate.lead_quic(lambda around: QuicRelay(sockets, QuicOrigins(origins_fd), Aes128(), around))

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
                self._terms,
                on_failure=on_failure,
                policy=policy.fingerprint,
                offers=policy.offers,
                decrypts_quic=policy.quic is Quic.DECRYPT,
                probes=probe is not None,
            )
            gate.govern(policy, self._terms, workers, probe)
            self._control.send(Governed())
        except Exception as error:
            traceback.print_exc()
            self._control.send(Fault(what="policy_not_taken", detail=type(error).__name__))
            raise SystemExit(1) from None

    def _limited(self, answer: bytes) -> bytes:
        return limited(answer, self._terms.offers)

    def _probe(self, roots_pem: bytes) -> OriginProbe | None:
        return OriginProbe(roots_pem, local_ports=self._local_ports) if roots_pem else None

    def _ask(self, number: int, origin: Origin) -> None:
        asked = Whose(
            number=number, pid=origin.pid, uid=origin.uid, comm=origin.comm,
            connected_ns=origin.connected_ns, client=origin.client,
            remote=origin.remote if origin.client is not None else None, caller=origin.caller,
            selected=origin.selected, told=origin.told,
        )  # fmt: skip
        self._control.send(asked)

    def _hangs(self, worker: int) -> None:
        with contextlib.suppress(ChannelFull):  # a supervisor that hangs itself
            self._control.send(WorkerHangs(worker=worker))

    async def _drain(self, gate: Gate, grace_s: float) -> None:
        draining, before = asyncio.ensure_future(gate.drain(grace_s)), gate.on_disk
        try:
            while not (await asyncio.wait((draining,), timeout=DRAINING_S))[0]:
                before, was = gate.on_disk, before
                if before != was:
                    self._control.send(Draining())
            self._control.send(Drained(cut=draining.result()))
        except ChannelFull:  # a supervisor that does not listen: it will end us, with or without our word
            self._control.close()
        finally:
            draining.cancel()


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
