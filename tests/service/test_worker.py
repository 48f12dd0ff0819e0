"""A real worker process, as the supervisor starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trustme

from mitmsec.audit.event import PERMITTED, FindingSeen, RequestSeen
from mitmsec.channel import Channel, close_all, pair
from mitmsec.core.messages import (
    Committed,
    Fault,
    FlowEnded,
    HandOver,
    MintAnswer,
    MintQuestion,
    ModulesAnswer,
    ModulesQuestion,
    Plaintext,
    Ready,
    Role,
    Taken,
    UpstreamQuestion,
    WorkerSettings,
)
from mitmsec.core.model import Action, Decision, Endpoint, OnFailure, OnFinding
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import packed
from mitmsec.service.worker import Worker
from mitmsec_addons import registry
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.profile import Name
from mitmsec_certs.signer import Mint

NAME = "www.origin.test"


class Around:
    """Everybody whom a worker talks to."""

    def __init__(self, tmp_path: Path, roots: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.said: dict[str, asyncio.Queue[Any]] = {"control": asyncio.Queue(), "gate": asyncio.Queue()}
        self.events: list[Any] = []

        keystore = open_keystore(tmp_path / "ca", "test", int(time.time()))
        self.root_pem = keystore.root_pem
        self._mint, self._keys, self._now_s = Mint(keystore.authority), LeafKeys(), int(time.time())
        self.control, control = self._end([Ready, Fault, ModulesAnswer], "control")
        self.gate, gate = self._end([Taken, UpstreamQuestion, FlowEnded], "gate")
        self.signer, signer = self._end([MintQuestion], None)
        self.recorder, recorder = self._end(list(PERMITTED[Role.WORKER]), None)
        memory = os.memfd_create("roots")
        os.write(memory, roots)
        self.fds = [gate, signer, recorder]
        self.process = subprocess.Popen(
            [sys.executable, "-O", "-m", "mitmsec.service", "worker", str(control.fileno())],
            pass_fds=[control.fileno()],
            env={**os.environ, "HOME": str(tmp_path / "home")},
            stderr=subprocess.PIPE,
        )
        control.close()
        self.roots = memory

    def _end(self, accepts: list[Any], name: str | None) -> tuple[Channel, socket.socket]:
        ours, theirs = pair()
        channel = Channel(ours, accepts)

        def told(message: Any, _fds: list[int]) -> None:
            if name is not None:
                self.said[name].put_nowait(message)
            elif isinstance(message, MintQuestion):
                pair = self._keys.of(message.key, self._now_s)
                chain = self._mint.leaf(Name.of(NAME), pair, message, self._now_s).chain
                channel.send(MintAnswer(number=message.number, chain=chain, key=pair.private_key))
            else:
                self.events.append(message)
                channel.send(Committed(count=len(self.events)))

        channel.attach(self.loop, told, lambda: None)
        return channel, theirs

    def settle(self, *, policy: bytes | None = None, **more: Any) -> None:
        settings = WorkerSettings(session="s", worker=0, on_failure=OnFailure.OPEN, capture=False, **more)
        more_fds = [] if policy is None else [memory(policy)]
        self.control.send(settings, *(sock.fileno() for sock in self.fds), self.roots, *more_fds)
        close_all(more_fds)
        for sock in self.fds:
            sock.close()
        os.close(self.roots)

    async def heard(self, where: str) -> Any:
        return await asyncio.wait_for(self.said[where].get(), 20)

    async def ended(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), 20)


async def over(made: Around) -> None:
    """Of a flow that takes long the gate hears before its end that somebody has it."""
    while not isinstance(said := await made.heard("gate"), FlowEnded):
        assert isinstance(said, Taken)


def memory(content: bytes) -> int:
    fd = os.memfd_create("policy")
    os.write(fd, content)
    return fd


@contextlib.asynccontextmanager
async def around(tmp_path: Path, roots: bytes = b"") -> AsyncIterator[Around]:
    made = Around(tmp_path, roots)
    try:
        yield made
    finally:
        for channel in (made.control, made.gate, made.signer, made.recorder):
            channel.close()
        made.process.kill()
        made.process.communicate()


@contextlib.contextmanager
def origin(ca: trustme.CA) -> Any:
    """One HTTPS answer after another, until closed; its endpoint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(NAME).configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                while tls.recv(65536):
                    tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Endpoint(address="127.0.0.1", port=listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def hand(made: Around, remote: Endpoint, *, inspect: tuple[str, ...] = ()) -> socket.socket:
    """The client's end of a flow that the worker now has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        near, address = listener.accept()
    upstream = socket.create_connection((remote.address, remote.port))
    decision = Decision(action=Action.DECRYPT, rule="r", reason="r", inspect=inspect, on_finding=OnFinding.ALERT)
    with near, upstream:
        made.gate.send(
            HandOver(
                flow="flow-1",
                kind=Plaintext.TLS,
                name=NAME,
                origin=remote,
                client=Endpoint(address=address[0], port=address[1]),
                decision=decision,
            ),
            near.fileno(),
            upstream.fileno(),
        )
    return client


def asks(client: socket.socket, root_pem: str, head: str) -> bytes:
    """A blocking client's answer."""
    context = ssl.create_default_context(cadata=root_pem)
    client.settimeout(20)
    with context.wrap_socket(client, server_hostname=NAME) as tls:
        tls.sendall(head.encode())
        return tls.recv(65536)


def test_a_flow_through_a_process_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with around(tmp_path, ca.cert_pem.bytes()) as made:
            with origin(ca) as remote:
                made.settle(inspectors=(("keywords", ("confidential",)),))
                assert await made.heard("control") == Ready()
                client = hand(made, remote, inspect=("keywords",))
                assert await made.heard("gate") == Taken(flow="flow-1")  # within a moment; later it would say no more
                head = f"GET /a?b=confidential HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
                answer = await asyncio.to_thread(asks, client, made.root_pem, head)
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                end = await made.heard("gate")
                assert (end.flow, end.outcome, end.tls.server.verified) == ("flow-1", "completed", True)
                seen = [event for event in made.events if isinstance(event, RequestSeen)]
                assert [(event.status, event.url) for event in seen] == [(200, f"https://{NAME}:{remote.port}/a?b=")]
                assert any(isinstance(event, FindingSeen) for event in made.events)
            made.control.close()
            assert await made.ended() == 0
            assert made.process.stderr is not None
            assert made.process.stderr.read() == b""
            assert not (tmp_path / "home").exists()

    asyncio.run(main())


def test_it_loads_nothing_that_it_must_not_hold(tmp_path: Path) -> None:
    async def main() -> None:
        async with around(tmp_path) as made:
            made.settle()
            assert await made.heard("control") == Ready()
            made.control.send(ModulesQuestion())
            loaded = set((await made.heard("control")).modules)
            assert "mitmproxy.proxy.layers.http" in loaded
            forbidden = {
                "mitmsec_certs.keystore", "mitmsec_certs.signer", "mitmsec.audit.store",
                "mitmsec_redirect", "mitmsec.gate", "sqlite3", "pydivert", "psutil", "mitmproxy.addons",
            }  # fmt: skip
            assert not forbidden & loaded

    asyncio.run(main())


def test_what_reads_quic_is_loaded_by_the_start_where_that_is_decrypted_and_nowhere_else(tmp_path: Path) -> None:
    async def main() -> None:
        for decrypts in (False, True):
            async with around(tmp_path) as made:
                made.settle(quic=decrypts)
                assert await made.heard("control") == Ready()
                made.control.send(ModulesQuestion())
                loaded = set((await made.heard("control")).modules)
                taken = {"aioquic.quic.connection", "mitmsec.engine.quic.conversation"}
                taken |= {"mitmsec_certs.key_encapsulation", "pylsqpack"}
                assert taken & loaded == (taken if decrypts else set())

    asyncio.run(main())


def test_the_end_of_the_gate_resets_what_lives_and_ends_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with around(tmp_path, ca.cert_pem.bytes()) as made:
            with origin(ca) as remote:
                made.settle()
                assert await made.heard("control") == Ready()
                with hand(made, remote) as client:
                    client.settimeout(20)
                    client.send(b"\x16\x03\x01")  # half a hello: the flow lives
                    made.gate.close()
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.to_thread(client.recv, 1) == b""
            assert await made.ended() == 0

    asyncio.run(main())


def test_settings_without_channels_are_answered_with_a_fault(tmp_path: Path) -> None:
    async def main() -> None:
        async with around(tmp_path) as made:
            made.control.send(WorkerSettings(session="s", worker=0, on_failure=OnFailure.OPEN, capture=False))
            assert (await made.heard("control")).what == "worker_settings"

    asyncio.run(main())


def test_an_inspector_that_cannot_be_made_is_a_fault_of_the_flow_that_wants_it(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with around(tmp_path, ca.cert_pem.bytes()) as made:
            with origin(ca) as remote:
                policy = Policy(inspectors=(("no such", ()), ("secrets", ())))
                made.settle(policy=packed(policy, {"secrets": b"not what was compiled"}))
                assert await made.heard("control") == Ready()
                client = hand(made, remote, inspect=("no such", "secrets"))
                await asyncio.to_thread(asks, client, made.root_pem, f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n")
                await over(made)
                faults = sorted(event.what for event in made.events if hasattr(event, "what"))
                assert faults == ["inspector_unusable"] * 2 + ["not_inspected"] * 2

    asyncio.run(main())


def test_an_inspector_that_fails_as_it_is_made_ends_no_worker_and_only_its_kind_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(name: str, words: tuple[str, ...], prepared: bytes | None) -> Any:
        if name == "broken":
            raise KeyError("the operator's secret word")
        return build_one(name, words, prepared)

    build_one = registry.build
    monkeypatch.setattr(registry, "build", build)
    recorded: list[Any] = []

    class Recorder:
        record = staticmethod(recorded.append)

    worker = Worker(cast("Any", None))
    made = worker._inspectors("s", (("broken", ()), ("doh", ())), {}, cast("Any", Recorder()))
    assert [one.name for one in made] == ["doh"]
    assert [(one.what, one.detail) for one in recorded] == [("inspector_unusable", "broken: KeyError")]


def test_the_inspectors_come_with_the_policy(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with around(tmp_path, ca.cert_pem.bytes()) as made:
            with origin(ca) as remote:
                policy = Policy(inspectors=(("keywords", ("confidential",)),))
                made.settle(policy=msgspec.json.encode(policy))
                assert await made.heard("control") == Ready()
                client = hand(made, remote, inspect=("keywords",))
                head = f"GET /a?b=confidential HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
                await asyncio.to_thread(asks, client, made.root_pem, head)
                await over(made)
                assert any(isinstance(event, FindingSeen) for event in made.events)

    asyncio.run(main())
