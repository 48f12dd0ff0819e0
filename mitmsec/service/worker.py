"""The worker's composition root: plaintext lives here, and nothing else does. No network, no disk, no CA key.

    supervisor ── WorkerSettings + channels, roots, policy[, keys] ──► engine ── Ready     (channels: gate, signer,
                                                                                           recorder, broker[, scanner])
    gate ── HandOver + both sockets ──► engine ──► FlowEnded ──► gate

It ends when the supervisor's or the gate's end of the channel closes: what lives is cut and recorded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mitmsec.audit.event import FaultSeen
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, close_all
from mitmsec.core.inspection import AnyInspector
from mitmsec.core.messages import Fault, Message, WorkerSettings
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import prepared_in, without_names
from mitmsec.engine.engine import Engine
from mitmsec.engine.links import GateLink, SignerLink, read_all
from mitmsec.engine.seams import Collaborators, Encapsulation, EngineSettings, Sealing
from mitmsec.service import child
from mitmsec.service.issuers import Issuers
from mitmsec.service.scan_line import ScanLine
from mitmsec_addons import registry
from mitmsec_addons.icap import Icap
from mitmsec_addons.malware import Malware
from mitmsec_addons.yara import Yara
from mitmsec_certs.public_roots import marks_in, named_in
from mitmsec_certs.upstream import Terms, Verifier

ACCEPTS = [WorkerSettings]
FLUSH_S = 2.0


class Worker:
    """One process's flows."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._engine: Engine | None = None
        self._gate: GateLink | None = None
        self._signer: SignerLink | None = None
        self._issuers: Issuers | None = None
        self._scan_line: ScanLine | None = None
        self._recorder: Producer | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def start(self, settings: WorkerSettings, fds: list[int]) -> Message | None:
        """Take up the channels and serve."""
        to_scanner = socket.socket(fileno=fds.pop()) if settings.scanner and fds else None
        to_broker = socket.socket(fileno=fds.pop()) if settings.broker and fds else None
        if len(fds) not in (4, 5, 6):
            close_all(fds)
            return Fault(what="worker_settings", detail=f"{len(fds)} descriptors where 4 to 6 are due")
        policy, prepared = Policy(inspectors=settings.inspectors), {}
        if len(fds) > 4:
            content = read_all(fds[4])
            policy = without_names(content)
            prepared = prepared_in(content, policy)
        roots_pem = read_all(fds[3])
        loop = asyncio.get_running_loop()
        self._scan_line = None if to_scanner is None else ScanLine(to_scanner, loop)
        gate, signer, recorder = (socket.socket(fileno=fd) for fd in fds[:3])
        self._recorder = Producer(recorder, loop)
        self._gate = GateLink(gate, loop)
        self._signer = SignerLink(signer, loop)
        self._engine = Engine(
            EngineSettings(on_failure=settings.on_failure, capture=settings.capture, quic=settings.quic),
            Collaborators(
                certifier=self._signer,
                gate=self._gate,
                judge=self._verifier(settings, policy, roots_pem, to_broker).judge,
                recorder=self._recorder,
                roots_pem=roots_pem,
                inspectors=self._inspectors(settings.session, policy.inspectors, prepared, self._recorder),
                identities=policy.identities,
                services=policy.services,
                addons=policy.mitmproxy_addons,
                sealing=_sealing(policy),
                keys_pem=read_all(fds[5]) if len(fds) == 6 else b"",
                encapsulation=_encapsulation(settings),
            ),
        )
        self._engine.settle()
        self._gate.serve(self._engine.take, self._gate_gone)
        return None

    def _verifier(
        self, settings: WorkerSettings, policy: Policy, roots_pem: bytes, to_broker: socket.socket | None
    ) -> Verifier:
        """Who judges origins."""
        terms = Terms(
            own_pem=settings.own_pem,
            public_roots=marks_in(roots_pem),
            named_roots=named_in(roots_pem),
            trust=policy.upstream_trust,
            revocation=policy.upstream_revocation,
            sct=policy.upstream_sct,
        )
        if to_broker is None:
            return Verifier(terms)
        self._issuers = Issuers(to_broker, asyncio.get_running_loop())
        return Verifier(terms, self._issuers.ask)

    def _inspectors(
        self,
        session: str,
        named: tuple[tuple[str, tuple[str, ...]], ...],
        prepared: Mapping[str, bytes],
        recorder: Producer,
    ) -> list[AnyInspector]:
        """What the policy names. One that cannot be made is recorded, and missing where a decision asks for it."""
        made = []
        for name, words in named:
            try:
                inspector = registry.build(name, words, prepared.get(name) if name in registry.PREPARED else None)
            except Exception as error:  # whatever is wrong with one, the others and all flows go on
                detail = f"{name}: {type(error).__name__}"  # only the type: a message may quote the policy's words
                recorder.record(FaultSeen(what="inspector_unusable", detail=detail, session=session))
                continue
            if isinstance(inspector, Icap | Malware) and self._issuers is not None:
                inspector.connect = self._issuers.servers.connect
            if isinstance(inspector, Yara) and self._scan_line is not None:
                inspector.scan = self._scan_line.scan
            made.append(inspector)
        return made

    def told(self, message: Any, fds: list[int]) -> None:
        """The supervisor has nothing more to say to a worker."""
        close_all(fds)

    def _gate_gone(self) -> None:
        """Nobody is left to answer to, and no flow comes any more: end, so that the supervisor starts another."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        try:
            await self.stop()
        finally:
            os._exit(0)  # the loop waits for the supervisor, who waits for this

    async def stop(self) -> None:
        """Cut what lives; let the recorder have what there is to say about it."""
        if self._engine is not None:
            await self._engine.stop()
        for link in (self._gate, self._signer, self._issuers, self._scan_line):
            if link is not None:
                link.close()
        if self._recorder is not None:
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self._recorder.flushed()
            except TimeoutError:
                pass
            self._recorder.close()


def _sealing(policy: Policy) -> Sealing | None:
    """What seals content under quarantine, where the policy names people for it."""
    if not policy.recipients:
        return None
    from mitmsec_certs.quarantine_box import Sealing

    return Sealing(policy.recipients)


def _encapsulation(settings: WorkerSettings) -> Callable[[], Encapsulation | None]:
    """What makes keys for hybrid key exchanges, where QUIC is decrypted: OpenSSL has its own."""
    if not settings.quic:
        return lambda: None
    from mitmsec_certs.key_encapsulation import encapsulation

    return encapsulation


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    logging.disable(logging.CRITICAL)  # there is nowhere to write to, and mitmproxy would quote traffic
    sys.setswitchinterval(1.0)  # one thread
    child.main(ACCEPTS, Worker)
