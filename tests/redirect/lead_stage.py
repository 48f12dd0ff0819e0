"""A name server of our own, a standing selection that leads to relays, and the gate's relay at work in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from redirect_sandbox import Agent, Sandbox, beat, ip

from mitmsec.core.model import Endpoint, Quic
from mitmsec.gate.dns_relay import DnsRelay
from mitmsec.service.name_relays import relay_sockets
from mitmsec_redirect import netns
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.dns_lead import Lead, LedServers
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.udp_hook import UdpHook
from mitmsec_redirect.udp_records import UdpFlow
from mitmsec_redirect.verdicts import Verdict, entry

V4, V6, MAPPED = "203.0.113.53", "2001:db8::53", "::ffff:203.0.113.53"
LOOPBACK = "127.0.0.53"
SERVER = """
import select, socket
sockets = []
for family, address in ((2, "203.0.113.53"), (10, "2001:db8::53"), (2, "203.0.113.54"), (2, "127.0.0.53")):
    sockets.append(socket.socket(family, 2)); sockets[-1].bind((address, 53))
answer = True
"""
SERVE = """
while True:
    for one in select.select(sockets, [], [])[0]:
        data, whose = one.recvfrom(65535)
        if data != b"silence": one.sendto(data + b" of %s %d" % (whose[0].encode(), whose[1]), whose)
"""


class Stage:
    """Ends with `held`. `heard` is what a gate would have heard: (sent by the program, its server, message)."""

    def __init__(self, box: Sandbox, held: contextlib.ExitStack, *, everything: bool = False) -> None:
        ip(f"addr add {V4}/32 dev lo\naddr add 203.0.113.54/32 dev lo\naddr add {V6}/128 dev lo nodad")
        self.box, self.heard = box, list[tuple[bool, Endpoint, bytes]]()
        self._verdicts = Map.create(MapKind.HASH, 4, 8, 64, "ms_selected")
        held.callback(self._verdicts.close)
        runs = RunCgroups()
        held.callback(runs.close)
        selection = Selection(self._verdicts.fd, runs.fd, everything=everything)
        self.connect_hook = box.hook(selection=selection)
        self.relays = relay_sockets()
        self.lead = Lead.open(self.relays)
        held.callback(self.lead.close)
        lead = self.lead, self.connect_hook
        self.hook = held.enter_context(UdpHook.open(box.cgroup.path, quic=Quic.REFUSE, selection=selection, lead=lead))
        for relay in self.relays:
            held.callback(relay.close)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        held.callback(self._end)
        self.relay: DnsRelay = self.on_loop(self._relay)
        server = box.agent(inside=False)
        held.callback(server._process.kill)
        server(SERVER)
        server.start(SERVE)

    def _relay(self) -> DnsRelay:
        servers = LedServers(*self.lead.descriptors)
        servers.close = lambda: None  # type: ignore[method-assign]  # the descriptors are the lead's
        return DnsRelay(self.relays, servers, lambda local, server, sent, data: self.heard.append((sent, server, data)))

    def on_loop[T](self, do: Callable[[], T]) -> T:
        async def done() -> T:
            return do()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(30)

    def kill_gate(self) -> None:
        """Its beat has stopped for good, and its sockets, which the supervisor has too, hear nobody."""
        self.on_loop(lambda: [self.loop.remove_reader(relay.fileno()) for relay in self.relays])

    def _end(self) -> None:
        self.on_loop(self.relay.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def agent(self, verdict: Verdict = Verdict.SELECTED) -> Agent:
        agent = self.box.agent()
        self.say(agent, verdict)
        return agent

    def say(self, agent: Agent, verdict: Verdict) -> None:
        number = entry(time.clock_gettime_ns(time.CLOCK_MONOTONIC), verdict)
        self._verdicts.update(struct.pack("=I", agent.pid), struct.pack("=Q", number))

    def asks(self, agent: Agent, code: str) -> Any:
        """What `code` leaves in `answer`; the gate's heart has just beaten."""
        beat(self.connect_hook)
        told = agent(code)
        return told.get("answer", told.get("error"))

    def flows(self) -> list[UdpFlow]:
        return [one for one in self.hook.drain(1000).told if isinstance(one, UdpFlow)]


ELSEWHERE = """
import select, socket, subprocess
for line in ("addr add 10.77.0.2/24 dev vb", "addr add fd77::2/64 dev vb nodad", "link set lo up", "link set vb up"):
    subprocess.run(["ip", *line.split()], check=True)
sockets = []
for family, address in ((2, "10.77.0.2"), (10, "fd77::2")):
    sockets.append(socket.socket(family, 2)); sockets[-1].bind((address, 53))
"""


def serve_elsewhere(box: Sandbox, held: contextlib.ExitStack) -> None:
    """A server on another machine, as it were: at 10.77.0.2 and fd77::2."""
    there = netns.fresh()
    held.callback(os.close, there)
    ip(f"link set vb netns /proc/{os.getpid()}/fd/{there}")
    server = netns.inside(there, lambda: box.agent(inside=False))
    held.callback(server._process.kill)
    assert server(ELSEWHERE) == {"answer": None}
    server.start(SERVE)


def is_led(answer: str, port: int) -> bool:
    """Whether the server has met another port than the program's own."""
    return int(answer.rpartition(" ")[2]) != port


def sockets_of(family: int) -> str:
    return f"s = socket.socket({family}, socket.SOCK_DGRAM); s.settimeout(20)"


__all__ = ["LOOPBACK", "MAPPED", "SERVE", "V4", "V6", "Stage", "is_led", "serve_elsewhere", "sockets_of"]
