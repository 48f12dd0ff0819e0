"""A flow that is played to the gate's own mind, and an engine behind it that gets what the gate hands over.

Played ── told, in the order in which things may happen ──► Flow ──► relayed | refused | an order for a worker
Behind ── each order, and what the client has said ──► Engine, as a worker has it ──► what its origin gets to see
Lessons   what the words of the interface say is learned of how decrypted flows end; none of the product's code
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from fidelity_stage import PROGRAMS, bytes_of, owner_of, rule_of

from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts, Upgrading
from mitmsec.core.model import Direction, Endpoint, OnFailure, Refusal
from mitmsec.core.policy import Policy
from mitmsec.engine.engine import Engine
from mitmsec.engine.seams import Collaborators, EngineSettings
from mitmsec.gate import signals as s
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.inward import Inward
from mitmsec.gate.learned import Learned
from mitmsec.gate.names import Names
from mitmsec.gate.terms import Terms

CLIENT, GATE = Endpoint(address="127.0.0.1", port=40000), Endpoint(address="127.0.0.1", port=8000)
GREETING = b"220 mail.example ESMTP\r\n"
ENDS = {
    "takes": TlsFacts(client=TlsClientFacts(), server=TlsServerFacts()),
    "refuses": TlsFacts(client=TlsClientFacts(refusal=Refusal.ALERT), server=TlsServerFacts()),
    "asks": TlsFacts(client=TlsClientFacts(), server=TlsServerFacts(asks_certificate=True)),
}


# --- the gate ---------------------------------------------------------------------------------------------------------
class Played:
    """A flow in the gate's mind, and the world around it as far as it asks for it."""

    health = type("Health", (), {"off": False, "recording": True, "signing": True})()
    terms = Terms(on_failure=OnFailure.CLOSED, capture=True)

    def __init__(
        self, name: str, policy: Policy, flow: dict[str, Any], draw: random.Random, learned: Learned | None = None
    ) -> None:
        """The client has connected, and it is known whose it is; nothing is said yet."""
        self._name, self._draw, self.flow = name, draw, flow
        self._remote = Endpoint(address=flow["address"], port=flow["port"])
        decides: Any = policy
        if flow["direction"] == "inbound":  # the service is ours, and the address the peer's
            decides = Inward(policy, self._remote)
        self.mind = Flow(name, self.terms, decides, Names(), self.health, learned)
        if flow["direction"] == "inbound":
            self.mind.about.direction = Direction.INBOUND
        self.done: list[str] = []  # what was done to its bytes
        self.order: HandOver | None = None
        self._dialled = False
        origin = s.Origin(remote=self._remote, pid=7, uid=1000, comm="x")
        self.tell(s.Accepted(CLIENT, GATE, origin, float(flow["at_s"])))
        self.tell(s.OwnerKnown(owner_of(flow)))

    def speak(self) -> None:
        """Who speaks first says it."""
        if self.flow["spoken"] == "greeted":
            return self._greeted()
        self._maybe_connected()
        data = bytes_of(self.flow)
        if self._draw.random() < 0.3:
            self.tell(s.FirstBytes(data[: self._draw.randrange(1, len(data))]))
            self._maybe_connected()
        self.tell(s.FirstBytes(data))
        self._connected()

    def _greeted(self) -> None:
        """Its client waits, so the gate has to contact the server before it can know, unless nobody may be."""
        if not self._dialled:
            self.tell(s.Deadline())
        self._connected()
        self.tell(s.ServerSpoke(GREETING))

    def upgrade(self, flow: dict[str, Any]) -> None:
        """The worker has let go: both ends have agreed to TLS, or to a tunnel."""
        self.done.clear()
        self.flow, self.order = flow, None
        self.tell(s.WorkerUpgrades(Upgrading(flow=self._name, bytes_sent=1, bytes_received=1)))
        self.tell(s.ServerSpoke(GREETING) if flow["spoken"] == "greeted" else s.FirstBytes(bytes_of(flow)))

    def _maybe_connected(self) -> None:
        if self._draw.random() < 0.5:
            self._connected()

    def _connected(self) -> None:
        if self._dialled:
            self._dialled = False
            self.tell(s.Dialled(self._remote))

    def tell(self, event: s.AnyEvent) -> None:
        for command in self.mind.told(event, 0.0):
            match command:
                case s.Dial():
                    self._dialled = True
                case s.Staff():
                    self.tell(s.Staffed(1))
                case s.Hand(order=order):
                    self.done.append("read")
                    self.order = order
                case s.Relay():
                    self.done.append("relayed")
                case s.Reset() | s.Page():
                    self.done.append("refused")
                case _:
                    pass

    def end(self, how: str) -> None:
        """What the worker says of it, where one has it. `how`, of TLS: one of ENDS."""
        if self.mind.state is State.HANDED:
            is_tls = self.flow["spoken"] == "tls"
            ended = FlowEnded(
                flow=self._name, bytes_sent=1, bytes_received=1, outcome="completed",
                tls=ENDS[how] if is_tls else None, was_heard=is_tls and how == "takes",
            )  # fmt: skip
            self.tell(s.WorkerSaid(ended))


# --- what is learned --------------------------------------------------------------------------------------------------
class Lessons:
    """Of a program's file, container and user, and a host and port: what was refused, and what passes since then."""

    def __init__(self) -> None:
        self._refused: Counter[tuple[Any, ...]] = Counter()
        self._passing: dict[tuple[Any, ...], str] = {}

    def passes(self, written: dict[str, Any], flow: dict[str, Any]) -> bool:
        """Whether a flow that the policy decrypts passes instead."""
        how, (after, on_request) = self._passing.get(_kind(flow)), _allowed(written, flow)
        return flow["spoken"] == "tls" and (on_request if how == "asks" else how == "refuses" and after > 0)

    def told(self, written: dict[str, Any], flow: dict[str, Any], how: str) -> None:
        """One that was decrypted, under this policy, has ended so."""
        kind, (after, on_request) = _kind(flow), _allowed(written, flow)
        if how == "asks" and on_request:
            self._passing.setdefault(kind, how)
        elif how == "takes":
            del self._refused[kind]
        elif how == "refuses" and after:
            self._refused[kind] += 1
            if self._refused[kind] >= after:
                del self._refused[kind]
                self._passing.setdefault(kind, how)


def _kind(flow: dict[str, Any]) -> tuple[Any, ...]:
    program = PROGRAMS[flow["program"]][0]
    host = (flow["name"] or flow.get("led") or flow["address"]).lower()
    return program.exe, program.claimed_exe, program.container, flow["user"], host, flow["port"]


def _allowed(written: dict[str, Any], flow: dict[str, Any]) -> tuple[int, bool]:
    """After how many refusals, and whether where the origin asks for a certificate."""
    said = (
        {"learned_bypass": 3, "on_certificate_request": "bypass"} | written["learning"] | (rule_of(written, flow) or {})
    )
    return int(said["learned_bypass"]), said["on_certificate_request"] == "bypass"


# --- the engine -------------------------------------------------------------------------------------------------------
class _Nobody:
    """Around an engine that gets no further than its origin's first word."""

    congested = False

    def __init__(self) -> None:
        self.ended_flows: dict[str, asyncio.Future[str]] = {}

    def ended(self, flow: FlowEnded) -> None:
        self.ended_flows[flow.flow].set_result(str(flow.outcome))

    def record(self, seen: object) -> None:
        return

    async def refuse(self, *_: object) -> Any:
        raise NotImplementedError

    leaf = connect = relieved = refuse
    upgrading = record


class Behind:
    """Engines that take what the gate hands over, on sockets of their own, up to what first reaches somebody."""

    def carry(self, handed: Sequence[tuple[HandOver, dict[str, Any], bytes]]) -> list[str]:
        """For each: the order, its flow, and what the client says instead of what it said to the gate, or nothing.

        `tls`: the engine begins TLS with the origin itself, under the name that was decided. `http`: it reads a
        request. `dialogue`: what was said has passed as it was. Else the outcome with which it ended the flow.
        """
        return asyncio.run(self._carry(handed))

    async def _carry(self, handed: Sequence[tuple[HandOver, dict[str, Any], bytes]]) -> list[str]:
        nobody: Any = _Nobody()
        engine = Engine(
            EngineSettings(on_failure=OnFailure.CLOSED),
            Collaborators(certifier=nobody, gate=nobody, judge=nobody.refuse, recorder=nobody, roots_pem=b""),
        )
        done = [self._one(engine, nobody, *each) for each in handed]
        seen = await asyncio.gather(*done)
        await engine.stop()
        return seen

    async def _one(self, engine: Engine, nobody: Any, order: HandOver, flow: dict[str, Any], instead: bytes) -> str:
        loop, said = asyncio.get_running_loop(), instead or bytes_of(flow)
        ended = nobody.ended_flows[order.flow] = loop.create_future()
        with ExitStack() as closing:
            (client, near), (origin, far) = socket.socketpair(), socket.socketpair()
            for mine in (client, origin):
                mine.setblocking(False)
                closing.enter_context(mine)
            speaker, said = (origin, GREETING) if flow["spoken"] == "greeted" else (client, said)
            speaker.sendall(said)
            engine.take(order, near, far)
            heard = [loop.create_task(loop.sock_recv(one, 1 << 16)) for one in (origin, client)]
            data: bytes | str = b""
            for first in asyncio.as_completed([*heard, ended]):
                if data := await first:
                    break
            for task in heard:
                task.cancel()
            await asyncio.gather(*heard, return_exceptions=True)
        return data if isinstance(data, str) else _seen(order, flow, said, data)


def _seen(order: HandOver, flow: dict[str, Any], said: bytes, data: bytes) -> str:
    """What the first bytes that came out say."""
    if order.kind is Plaintext.TLS:
        hello = clienthello.parse(data)
        assert isinstance(hello, ClientHello)
        assert (hello.sni, data == said) == (flow["name"] and flow["name"].lower(), False)
        return "tls"
    if order.kind is Plaintext.HTTP:
        assert data.startswith((b"GET / HTTP/1.1\r\n", b"HTTP/1.1 400 "))
        return "http"
    assert data == said
    return "dialogue"
