"""Our gate as a proxy that clients call by its address: everything that the gate costs, without what leads to it.

`gate` is the real gate with its policy and a real recorder process, but one origin for whoever comes, and an owner who
is nobody at once: no hook, no look-up of cookie and origin, no question to a supervisor, no jail. `bare` is the gate's
relay alone: accept, connect, splice; no policy, nothing peeked, nothing recorded. It bounds what any gate can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, pair
from mitmsec.config import load_policy
from mitmsec.core.messages import Committed, Fault, ProducerUp, Ready, RecorderSettings, Role
from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process
from mitmsec.gate.loop import BACKLOG_LIMIT, Gate
from mitmsec.gate.relay import Relay
from mitmsec.gate.signals import Ending, Origin
from mitmsec.gate.splice import Pipes
from mitmsec.gate.surroundings import Surroundings
from mitmsec.gate.terms import Terms

NOBODY = Process(pid=0, confidence=Confidence.UNKNOWN)
SESSION = "explicit"
EVENTS_LIMIT, EVENTS_LIMIT_BYTES = 65536, 64 << 20  # as mitmsec's gate


class OneOrigin:
    """Every connection was going there (mitmsec.gate.loop.Origins)."""

    def __init__(self, address: str, port: int) -> None:
        self._origin = Origin(remote=Endpoint.of(address, port), pid=0, uid=0, comm="")

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        """The one origin."""
        return self._origin


async def gate(listener: socket.socket, address: str, port: int, policy_file: Path, state: Path) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    signer, _signer_end = pair()
    serving: list[Gate] = []

    def ask(number: int, origin: Origin) -> None:
        loop.call_soon(serving[0].owner, number, NOBODY)

    around = Surroundings(
        origins=OneOrigin(address, port),
        recorder=Producer(recorder(state), loop, limit=EVENTS_LIMIT, limit_bytes=EVENTS_LIMIT_BYTES),
        signer=Channel(signer, [Committed]),
        ask=ask,
        beat=lambda: None,
        hangs=lambda worker: None,
    )
    serving.append(Gate([listener], around, load_policy(policy_file), Terms(on_failure=OnFailure.OPEN)))
    serving[0].open()
    await asyncio.Event().wait()


def recorder(state: Path) -> socket.socket:
    """A producer's end of a channel to a recorder of its own, which ends when this process does."""
    state.mkdir()
    ours, theirs = pair()
    argv = [sys.executable, "-m", "mitmsec.service", "recorder", str(theirs.fileno())]
    subprocess.Popen(argv, pass_fds=[theirs.fileno()])
    theirs.close()
    control = Channel(ours, [Ready, Fault])
    control.attach(asyncio.get_running_loop(), lambda message, fds: None, lambda: None)
    control.send(RecorderSettings(folder=str(state)))
    mine, its = pair()
    control.send(ProducerUp(role=Role.GATE, session=SESSION, worker=-1), its.fileno())
    its.close()
    return mine


async def bare(listener: socket.socket, address: str, port: int) -> None:
    """Serve until killed."""
    loop, pipes = asyncio.get_running_loop(), Pipes()
    listener.setblocking(False)
    relaying: set[object] = set()
    while True:
        client, _ = await loop.sock_accept(listener)
        task = loop.create_task(_joined(client, (address, port), pipes))
        relaying.add(task)
        task.add_done_callback(relaying.discard)


async def _joined(client: socket.socket, origin: tuple[str, int], pipes: Pipes) -> None:
    loop = asyncio.get_running_loop()
    upstream = socket.socket()
    upstream.setblocking(False)
    for sock in (client, upstream):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, upstream, contextlib.suppress(OSError):
        await loop.sock_connect(upstream, origin)
        over: asyncio.Future[Ending] = loop.create_future()
        Relay(loop, client, upstream, pipes, None, over.set_result).start()
        await over


def main(arguments: list[str]) -> None:
    """KIND PORT ADDRESS ORIGIN_PORT [POLICY STATE]."""
    kind, port, address, origin_port, *places = arguments
    listener = socket.create_server(("", int(port)), backlog=BACKLOG_LIMIT)
    if kind == "gate":
        asyncio.run(gate(listener, address, int(origin_port), *map(Path, places)))
    else:
        asyncio.run(bare(listener, address, int(origin_port)))


if __name__ == "__main__":
    main(sys.argv[1:])
