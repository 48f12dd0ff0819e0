"""The signer's composition root: the only process that holds the issuing key. No network, no traffic.

    supervisor ── SignerSettings, later CaReload ──► keystore ──► SignerReady (or Fault: the CA cannot be used)
               ── ProducerUp(gate | worker, session) + channel
    gate   ── MintDecision, MintWithdrawn ──► desk of its session
          ◄── Crls ── at once, and whenever the CA has changed
    worker ── MintQuestion ──► desk of its session ──► MintAnswer
                                      └── CertificateSeen ──► recorder

A worker's question can overtake the gate's decision, because they come through different sockets: a question about a
flow that nobody has decided waits a moment for the gate's word before it is refused. A worker that asks more often than
any honest one is refused without work, and cannot flood the log with refusals either. A channel that carries what it
must not is ended. What a gate decided ends with it. Nothing is issued once the recorder has gone. A token that does not
sign any more ends the process: the runs then follow `on_failure` until the next signer has opened it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from mitmsec.audit.event import FaultSeen
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.allowance import Allowance
from mitmsec.core.messages import (
    CaReload,
    Crls,
    Fault,
    Message,
    MintAnswer,
    MintDecision,
    MintQuestion,
    MintWithdrawn,
    ProducerUp,
    Role,
    SignerReady,
    SignerSettings,
)
from mitmsec.core.model import Value
from mitmsec.service import child
from mitmsec_certs.keystore import Keystore, KeystoreRefused, open_keystore
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.signer import Mint, Refused, SignerDesk

QUESTIONS_PER_S = 1000.0  # for each worker; a P-256 signature costs more than this is worth to anybody honest
QUESTIONS_BURST = 1000.0
REFUSALS_PER_S = 1.0  # recorded, for each worker; more are counted
REFUSALS_BURST = 20.0
SECRET_LIMIT_BYTES = 4096
EARLY_LIMIT = 256  # questions of one worker that wait for the gate's word
STATUS_TOKEN_LOST = 4
PATIENCE_S = 1.0  # as long as a gate with a full socket may need to bring it
REMINDED_S = 86_400.0


class Asker:
    """A worker as the signer sees it: how much it may ask, and how many of its refusals are not on record yet."""

    def __init__(self, channel: Channel, worker: int, now_s: float) -> None:
        self.channel = channel
        self.worker = worker
        self.early = 0  # questions that wait
        self.questions = Allowance(QUESTIONS_PER_S, QUESTIONS_BURST, now_s)
        self.refusals = Allowance(REFUSALS_PER_S, REFUSALS_BURST, now_s)
        self.unrecorded = 0


class Early(Value, frozen=True):
    """A question that came before the gate's word, and the timer that will wait no longer."""

    asker: Asker
    question: MintQuestion
    timer: asyncio.TimerHandle


class Session:
    """One run's desk, and the channels that may speak to it."""

    def __init__(self, name: str, mint: Mint) -> None:
        self.name = name
        self.keys = LeafKeys()
        self.desk = SignerDesk(mint, self.keys)
        self.gates: list[Channel] = []
        self.workers: list[Asker] = []
        self.early: dict[str, Early] = {}  # by flow


class Signer:
    """Program of the signer process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._folder = Path()
        self._crls = Crls(lists=())
        self._sessions: dict[str, Session] = {}
        self._mint: Mint | None = None
        self._recorder: Producer | None = None
        self._reminder: asyncio.TimerHandle | None = None

    async def start(self, settings: SignerSettings, fds: list[int]) -> Message:
        """Open the CA. A CA that cannot be used is answered with a Fault, and every channel is then ended at once."""
        self._recorder = Producer(socket.socket(fileno=fds[0]), asyncio.get_running_loop())
        self._folder = Path(settings.folder)
        return self._open(fds[1:])

    def _open(self, opens: list[int]) -> Message:
        """The CA in the folder is the one that signs. One that cannot be used changes nothing.

        `opens`: a descriptor with what opens a sealed key, where the CA has one.
        """
        now_s, secret = int(time.time()), _content(opens)
        try:
            keystore = open_keystore(self._folder, socket.gethostname(), now_s, secret=secret)
            self._crls = Crls(lists=keystore.crls(now_s))
        except (KeystoreRefused, OSError) as error:
            return Fault(what="ca_refused", detail=str(error))
        if self._mint is None:
            self._mint = Mint(keystore.authority)
        else:
            self._mint.adopt(keystore.authority)
        self._remind_of(keystore)
        return _ready(keystore)

    def _remind_of(self, keystore: Keystore) -> None:
        """That it ends soon, once a day."""
        if self._reminder is not None:
            self._reminder.cancel()
        if keystore.ends_soon(int(time.time())):
            ends = _time(keystore.authority.validity.not_after_s)
            self._fault("ca_ends_soon", f"{keystore.root_subject}: ends at {ends}; {keystore.renewal}")
        self._reminder = asyncio.get_running_loop().call_later(REMINDED_S, self._remind_of, keystore)

    def told(self, message: ProducerUp | CaReload, fds: list[int]) -> None:
        """A gate or a worker to listen to, or another CA to sign with."""
        if isinstance(message, CaReload):
            self._control.send(self._open(fds))
            for gate in [gate for session in self._sessions.values() for gate in session.gates]:
                with contextlib.suppress(ChannelFull):  # it does not read; its end will be told
                    gate.send(self._crls)
            return
        if self._mint is None or len(fds) != 1:
            close_all(fds)
            return
        session = self._sessions.setdefault(message.session, Session(message.session, self._mint))
        match message.role:
            case Role.GATE:
                self._listen_to_gate(session, fds[0])
            case Role.WORKER:
                self._listen_to_worker(session, fds[0], message.worker)
            case Role.RECORDER | Role.SIGNER | Role.SUPERVISOR:
                close_all(fds)
                self._fault("unexpected_producer", f"a {message.role} has nothing to ask", session)
                self._forget_if_over(session)

    async def stop(self) -> None:
        """Every certificate that was issued is on record when this returns, unless the recorder has gone."""
        if self._reminder is not None:
            self._reminder.cancel()
        for session in list(self._sessions.values()):
            for channel in (*session.gates, *(asker.channel for asker in session.workers)):
                channel.close()
            for early in session.early.values():
                early.timer.cancel()
        if self._recorder is not None:
            await self._recorder.flushed()
            self._recorder.close()

    # -- gates ---------------------------------------------------------------------------------------------------------
    def _listen_to_gate(self, session: Session, fd: int) -> None:
        channel = Channel(socket.socket(fileno=fd), [MintDecision, MintWithdrawn])
        session.gates.append(channel)
        channel.send(self._crls)
        channel.attach(
            asyncio.get_running_loop(),
            lambda message, fds: self._gate_said(session, message, fds),
            lambda: self._gate_ended(session, channel),
        )

    def _gate_said(self, session: Session, message: MintDecision | MintWithdrawn, fds: list[int]) -> None:
        close_all(fds)
        if isinstance(message, MintWithdrawn):
            session.desk.withdraw(message.flow)
            return
        try:
            session.desk.decide(message.flow, message.name, int(time.time()))
        except Refused as error:
            self._fault("decision_refused", str(error), session, message.flow)
        if message.flow in session.early:
            self._answer_early(session, message.flow)

    def _gate_ended(self, session: Session, channel: Channel) -> None:
        session.gates.remove(channel)
        if not session.gates and self._mint is not None:
            session.desk = SignerDesk(self._mint, session.keys)
        self._forget_if_over(session)

    # -- workers -------------------------------------------------------------------------------------------------------
    def _listen_to_worker(self, session: Session, fd: int, worker: int) -> None:
        loop = asyncio.get_running_loop()
        asker = Asker(Channel(socket.socket(fileno=fd), [MintQuestion]), worker, loop.time())
        session.workers.append(asker)
        asker.channel.attach(
            loop,
            lambda question, fds: self._asked(session, asker, question, fds),
            lambda: self._worker_ended(session, asker),
            burst=1,  # a token may take a second for each, and who does not beat meanwhile counts as hanging
        )

    def _asked(self, session: Session, asker: Asker, question: MintQuestion, fds: list[int]) -> None:
        close_all(fds)
        loop = asyncio.get_running_loop()
        if not asker.questions.spend(loop.time()):
            self._reply(session, asker, question, MintAnswer(number=question.number, error="too many questions"))
        elif _is_early(session, asker, question.flow):
            timer = loop.call_later(PATIENCE_S, self._answer_early, session, question.flow)
            session.early[question.flow] = Early(asker, question, timer)
            asker.early += 1
        else:
            self._answer(session, asker, question)

    def _answer_early(self, session: Session, flow: str) -> None:
        """The gate has spoken, or has been waited for long enough: the desk knows which."""
        early = session.early.pop(flow)
        early.timer.cancel()
        early.asker.early -= 1
        self._answer(session, early.asker, early.question)

    def _answer(self, session: Session, asker: Asker, question: MintQuestion) -> None:
        if self._recorder is None or self._recorder.gone:
            error = "the recorder has gone, nothing is issued off the record"
            return self._reply(session, asker, question, MintAnswer(number=question.number, error=error))
        try:
            answer, event = session.desk.answer(question, int(time.time()))
        except KeystoreRefused as error:
            self._fault("token_lost", str(error), session, question.flow)
            raise SystemExit(STATUS_TOKEN_LOST) from None
        if event is not None:
            self._recorder.record(event)
        self._reply(session, asker, question, answer)

    def _reply(self, session: Session, asker: Asker, question: MintQuestion, answer: MintAnswer) -> None:
        if answer.error:
            self._record_refusal(session, asker, question.flow, answer.error)
        try:
            asker.channel.send(answer)
        except ChannelFull:  # it asks and never reads
            asker.channel.close()
            self._worker_ended(session, asker)

    def _record_refusal(self, session: Session, asker: Asker, flow: str, error: str) -> None:
        asker.unrecorded += 1
        if self._recorder is None or not asker.refusals.spend(asyncio.get_running_loop().time()):
            return
        known = flow if flow in session.desk else None  # a worker's word about a flow proves nothing
        detail = f"worker {asker.worker}: {error}" + ("" if known else f" (flow {flow[:64]!r})")
        count, asker.unrecorded = asker.unrecorded, 0
        self._recorder.record(
            FaultSeen(what="certificate_refused", detail=detail, flow=known, session=session.name, count=count)
        )

    def _worker_ended(self, session: Session, asker: Asker) -> None:
        session.workers.remove(asker)
        self._forget_if_over(session)

    # -- both ----------------------------------------------------------------------------------------------------------
    def _forget_if_over(self, session: Session) -> None:
        """Without its gate nobody can decide, and without its workers nobody can ask."""
        if not session.gates and not session.workers:
            self._sessions.pop(session.name, None)

    def _fault(self, what: str, detail: str, session: Session | None = None, flow: str | None = None) -> None:
        if self._recorder is not None:
            name = session.name if session is not None else ""
            self._recorder.record(FaultSeen(what=what, detail=detail, session=name, flow=flow))


def _ready(keystore: Keystore) -> SignerReady:
    return SignerReady(
        root_pem=keystore.roots_pem,
        issuing_pem=keystore.issuing_pem,
        created=keystore.created,
        own_pem=keystore.own_pem,
        subject=keystore.root_subject,
        sha256=keystore.root_sha256,
        not_after=_time(keystore.root_not_after_s),
    )


def _content(opens: list[int]) -> bytes | None:
    """Of the one memory file, if there is one. The descriptors go."""
    try:
        return os.pread(opens[0], SECRET_LIMIT_BYTES, 0) if opens else None
    finally:
        close_all(opens)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_early(session: Session, asker: Asker, flow: str) -> bool:
    """Whether the gate's word about `flow` may still be on its way. One question a flow waits, few a worker."""
    waits = flow in session.early or asker.early >= EARLY_LIMIT
    return bool(session.gates) and flow not in session.desk and not waits


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main([SignerSettings, ProducerUp, CaReload], Signer)
