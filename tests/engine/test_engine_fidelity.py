"""The same over real sockets: a client, the gate, the engine behind it, and an origin, under policies that change.

What the client sees, and whose plaintext the engine has on record, is what the policy says.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from engine_world import RealMint
from engine_world import Recorder as EngineRecorder
from fidelity_stage import NAMES, OFFERS, READ, Ground, bytes_of, drawn_flow, drawn_policy, due, owner_of, said
from gate_house import WAIT_S, House, houses

from mitmsec.channel import pair
from mitmsec.core.messages import HandOver
from mitmsec.core.model import OnFailure
from mitmsec.core.sniff import Sniffed, first_bytes
from mitmsec.engine.engine import Engine
from mitmsec.engine.links import GateLink
from mitmsec.engine.seams import Collaborators, EngineSettings
from mitmsec.gate import connection
from mitmsec.gate.terms import State, Terms
from mitmsec_certs.upstream import Terms as OriginTerms
from mitmsec_certs.upstream import Verifier

POLICIES, FLOWS_EACH = 60, 20
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.1.1")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\norigin"
TERMS = Terms(on_failure=OnFailure.CLOSED, capture=True)


class Origin:
    """Serves TLS or not, as the next client will speak, on every address and port; says that it is the origin."""

    def __init__(self, ca: trustme.CA) -> None:
        self.speaks_tls = False
        self.ports: tuple[int, ...] = ()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["http/1.1"])
        ca.issue_cert(*{name.lower() for name in NAMES if name}, *ADDRESSES).configure_cert(self._context)

    async def __aenter__(self) -> Origin:
        self._servers = []
        for _ in range(2):
            port = 0
            for address in ADDRESSES:
                server = await asyncio.start_server(self._serve, address, port)
                port = server.sockets[0].getsockname()[1]
                self._servers.append(server)
            self.ports += (port,)
        return self

    async def __aexit__(self, *error: object) -> None:
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.speaks_tls:
                await writer.start_tls(self._context)
            if await reader.read(4096):
                writer.write(ANSWER)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()


class Decrypting:
    """The engine as a worker has it, behind a channel to the gate."""

    def __init__(self, house: House, folder: Path, ca: trustme.CA) -> None:
        mine, theirs = pair()
        self.taken = 0
        self.recorder, mint = EngineRecorder(), RealMint(folder)
        self._link = GateLink(theirs, asyncio.get_running_loop())
        self.engine = Engine(
            EngineSettings(on_failure=OnFailure.CLOSED, capture=False, handshake_deadline_s=WAIT_S),
            Collaborators(
                certifier=mint,
                gate=self._link,
                judge=Verifier(OriginTerms(own_pem=mint.own_pem)).judge,
                recorder=self.recorder,
                roots_pem=ca.cert_pem.bytes(),
            ),
        )
        self._link.serve(self._take, lambda: None)
        house.gate.crew.up(0, mine.detach())

    def _take(self, order: HandOver, client: socket.socket, origin: socket.socket) -> None:
        self.taken += 1
        self.engine.take(order, client, origin)

    def paths(self) -> list[str]:
        return [urlsplit(seen.url).path for seen in self.recorder.requests]

    async def close(self) -> None:
        await self.engine.stop()
        self._link.close()


def client_context(offers: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if offers:
        context.set_alpn_protocols(list(offers))
    return context


CONTEXTS = {offers: client_context(offers) for offers in OFFERS}


def ja4_of(name: str | None, offers: tuple[str, ...]) -> str:
    """Of the hello that this machine's OpenSSL sends."""
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        CONTEXTS[offers].wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    sniffed = first_bytes(sent.read())
    assert isinstance(sniffed, Sniffed)
    assert sniffed.hello is not None
    return sniffed.hello.ja4


def ground(ports: tuple[int, ...]) -> Ground:
    return Ground(
        addresses=ADDRESSES,
        ports=ports,
        written_addresses=("127.0.0.0/24", "127.0.0.0/16", "127.0.0.2"),
        written_ports=(ports[0], "1-100", f"{min(ports)}-{max(ports)}"),
        spoken=("tls", "tls", "tls", "http", "smtp", "ssh", "tcp"),
        inbound=0.0,
        encrypted=0,
        ja4={(name, offers): ja4_of(name, offers) for name in NAMES for offers in OFFERS},
    )


async def begun(house: House, flow: dict[str, Any]) -> socket.socket:
    """A client's connection, of which the gate knows whose it is, and nothing more: a policy that comes now is late."""
    house.divert((flow["address"], flow["port"]))
    house.process = owner_of(flow)
    earlier = set(house.gate._flows)
    plain = house.dial()
    async with asyncio.timeout(WAIT_S):
        while not any(
            one.flow.state is not State.OWNER for key, one in house.gate._flows.items() if key not in earlier
        ):
            await asyncio.sleep(0)
    return plain


def spoken(plain: socket.socket, flow: dict[str, Any], path: str) -> str:
    """What the client sees: `ours` or `theirs` by the certificate, `plain` of the origin without one, or `refused`."""
    try:
        with plain:
            if flow["spoken"] != "tls":
                version = b"1.1" if flow["name"] else b"1.0"  # which needs no Host
                plain.sendall(bytes_of(flow).replace(b"GET / HTTP/1.1", b"GET %s HTTP/%s" % (path.encode(), version)))
                return "plain" if b"origin" in whole(plain) else "refused"
            with CONTEXTS[flow["alpn"]].wrap_socket(plain, server_hostname=flow["name"]) as secure:
                shown = secure.getpeercert(binary_form=True)
                secure.sendall(f"GET {path} HTTP/1.1\r\nHost: {flow['name'] or flow['address']}\r\n\r\n".encode())
                assert b"origin" in whole(secure)
                assert shown is not None
                return "ours" if b"mitmsec issuing" in shown else "theirs"
    except ConnectionResetError:
        return "refused"


def whole(sock: socket.socket) -> bytes:
    answer = b""
    while b"origin" not in answer and (data := sock.recv(4096)):
        answer += data
    return answer


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[House, Decrypting, Origin]]:
    ca = trustme.CA()
    async with Origin(ca) as origin, houses() as make:
        house = make(on_failure=OnFailure.CLOSED, capture=True)
        decrypting = Decrypting(house, folder, ca)
        yield house, decrypting, origin
        await decrypting.close()


SEEN = {"read": "ours", "relayed": "theirs", "refused": "refused"}


def test_of_real_flows_exactly_those_are_decrypted_that_the_policy_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 of them, under 60 policies that follow one another, each while a flow waits that keeps its own: what ten
    seconds of one core allow.
    """
    draw, found, wanted_paths = random.Random(20261201), Counter[tuple[str, str]](), []
    clock = SimpleNamespace(time=lambda: 0.0)
    monkeypatch.setattr(connection, "time", clock)

    async def main() -> None:
        async with world(tmp_path / "ca") as (house, decrypting, origin):
            places = ground(origin.ports)
            policies = [drawn_policy(draw, places) for _ in range(POLICIES)]
            following = [policy for _, policy in policies[1:]]
            house.gate.govern(policies[0][1], TERMS, {0})
            for written, _ in policies:
                for number in range(FLOWS_EACH):
                    flow = drawn_flow(draw, places)
                    clock.time = lambda at_s=float(flow["at_s"]): at_s
                    origin.speaks_tls = flow["spoken"] == "tls"
                    taken, path = decrypting.taken, f"/{found.total()}"
                    plain = await begun(house, flow)
                    if number == FLOWS_EACH - 1 and following:
                        house.gate.govern(following.pop(0), TERMS, {0})
                    seen = await asyncio.to_thread(spoken, plain, flow, path)
                    wanted = due(said(written, flow), flow["protocol"])
                    visible = SEEN[wanted] if flow["spoken"] == "tls" or wanted == "refused" else "plain"
                    assert (seen, decrypting.taken - taken) == (visible, wanted == "read"), (written, flow)
                    found[flow["protocol"], wanted] += 1
                    if wanted == "read" and flow["protocol"] in ("tls", "http"):
                        wanted_paths.append(path)
            assert sorted(decrypting.paths()) == sorted(wanted_paths)

    asyncio.run(main())
    assert found.total() == POLICIES * FLOWS_EACH
    kinds = [(one, "read") for one in READ & {"tls", "http", "smtp"}]
    kinds += [(one, other) for one in ("tls", "http", "smtp", "ssh", "tcp") for other in ("relayed", "refused")]
    assert {kind: found[kind] for kind in kinds if found[kind] < 10} == {}, "each happens, and often"
