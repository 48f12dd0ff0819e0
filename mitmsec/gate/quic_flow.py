"""One flow of QUIC, from its first datagram to its record: what to do with each, by what its client's hello shows.

    OPENING ── hello whole, owner known ─► policy ─┬─ block ──► REFUSED: told so by QUIC's own CONNECTION_CLOSE
       │ until then datagrams are held             ├─ decrypt ► STAFF ─► HANDED: to a worker, until that has ended it
       │                                           │    └ with quic = "bypass", or switched off: as the rest
       │                                           └─ else ───► PASSING: what was held, and all that follows, unread
       ├─ no hello, or one that nobody can read ─► as the policy says without a name, or refused where a name decides
       └─ no owner in time ─► on_failure

A flow is one socket and one destination. Who begins another connection on it shows another hello: for the same host it
is judged again, for another one the flow is refused. No Initial passes unread: one that says something else than before
under the same keys, or that no key opens, goes nowhere. Nothing here is ever decrypted but what has no secret: the
Initials. What is to be decrypted by a worker and cannot be is refused. Times are monotonic seconds. Everything is
bounded: datagrams held, and the hellos that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello, Malformed, NeedMore
from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Action, Decision, Endpoint, OnFailure
from mitmsec.core.quic_answers import (
    SMALLEST_BYTES,
    SealingCipher,
    connections,
    is_unreadable_version,
    refusal,
    version_negotiation,
)
from mitmsec.core.quic_opening import Begun, QuicOpening
from mitmsec.core.quic_packets import Initial, initials
from mitmsec.core.sniff import NOTHING_SHOWN, Protocol, Shown
from mitmsec.gate.quic_account import QuicAccount
from mitmsec.gate.quic_decrypting import Decrypting
from mitmsec.gate.quic_signals import (
    Answer,
    Command,
    Deliver,
    Forward,
    Hand,
    LetGo,
    Record,
    Report,
    Staff,
    State,
)
from mitmsec.gate.signals import Origin, OwnerKnown
from mitmsec.gate.terms import Decides, Terms

HELD_LIMIT, HELD_LIMIT_BYTES = 64, 32 << 10  # a hello and early data
PIECES_LIMIT_BYTES = 64 << 10  # of hellos that are not whole
BEGUN_LIMIT_BYTES = 32 << 10  # of hellos that are whole; one is 300 to 4,000
CONNECTIONS_LIMIT = 8  # on one flow: one, another after a Retry or another version, and some more
REFUSALS_LIMIT = 16  # as often a client is told; then it gets silence
LONG_HEADER = b"\x80"
LONG_LIVED_S = 10.0
CANNOT_DECIDE = "on_failure"
UNREAD = "what the policy asks about its program could not be read"
ANOTHER_HOST = "another host on the flow of one that passed"


class QuicFlow:
    """`client` is the program's end, `resolved` the names that DNS answers gave the origin's address by then."""

    def __init__(
        self,
        flow: str,
        origin: Origin,
        client: Endpoint,
        policy: Decides,
        terms: Terms,
        cipher: SealingCipher,
        *,
        now_s: float,
        at_s: float,
        resolved: tuple[str, ...] | None = None,
        decrypting: Decrypting | None = None,
    ) -> None:
        """Without `decrypting`, what a rule would have decrypted passes unread."""
        self.about = QuicAccount(flow, origin, client, terms.policy, resolved, now_s)
        self.id, self.origin = flow, origin
        self.state = State.OPENING
        self.last_s = now_s
        self.held_bytes = 0
        self._policy, self._terms, self._cipher, self._at_s = policy, terms, cipher, at_s
        self._decrypting = decrypting
        self._is_owned = self._is_settled = False
        self.selected = True
        self._held: list[bytes] = []
        self._opening = QuicOpening(cipher)
        self._begun: list[Begun] = []
        self._again: QuicOpening | None = None
        self._first = b""  # of what a worker has: to be refused, where that answers nothing
        self._refusals = 0
        self._told_open = False

    # -- what it is told -----------------------------------------------------------------------------------------------
    def client_sent(self, datagram: bytes, now_s: float) -> Sequence[Command]:
        """What becomes of it."""
        self.last_s = now_s
        return self._heard(datagram)

    def _heard(self, datagram: bytes) -> Sequence[Command]:
        match self.state:
            case State.OPENING:
                return self._opens(datagram)
            case State.PASSING | State.HANDED:
                return self._passes(datagram)
            case State.REFUSED:
                return self._refuses(datagram)
            case State.STAFF | State.ENDED:
                return []
            case _:
                assert_never(self.state)

    def origin_sent(self, size_bytes: int, now_s: float) -> None:
        """And it is handed on. Or a worker in its place."""
        self.last_s = now_s
        self.about.received += 1
        self.about.received_bytes += size_bytes

    def owned(self, owner: OwnerKnown) -> Sequence[Command]:
        """Whose it is."""
        if self._is_owned or self.state is not State.OPENING:
            return []
        self.about.process, self._is_owned, self.selected = owner.process, True, owner.selected
        if not self.selected:
            self._is_settled = True
            return self._let_pass(Decision(action=Action.BYPASS, rule=CANNOT_DECIDE, reason="not selected"))
        return self._decide()

    def unrecorded(self) -> Sequence[Command]:
        """Nobody puts it on record, and what cannot be recorded must not pass."""
        return self._unjudged("recorder_gone", "nobody could put it on record")

    def waited(self, now_s: float) -> Sequence[Command]:
        """Time has passed; to be called every second or so."""
        if self.state is not State.OPENING:
            return self._lives_long(now_s)
        waits_s = now_s - self.about.began_s
        if not self._is_owned and waits_s > self._terms.owner_deadline_s:
            return self._unjudged("owner_unknown", "whose it is stayed unknown")
        is_late = self._is_owned and waits_s > self._terms.hello_end_deadline_s
        return self._unreadable("incomplete") if is_late else []

    def ended(self, now_s: float, outcome: Outcome = Outcome.COMPLETED) -> Sequence[Command]:
        """No more comes, or is to come."""
        before, self.state = self.state, State.ENDED
        self._drop_held()
        if before is State.HANDED:
            return [Record(self.about.seen(outcome, now_s)), LetGo()]
        if before is State.PASSING and self.selected:
            return [Record(self.about.seen(outcome, now_s))]
        if before is State.OPENING:
            why = "ended before its hello was whole"
            self.about.decision = Decision(action=Action.BLOCK, rule=CANNOT_DECIDE, reason=why)
            return [Record(self.about.seen(Outcome.CLIENT_CLOSED, now_s))]
        return []

    # -- workers -------------------------------------------------------------------------------------------------------
    def staffed(self, worker: int) -> Sequence[Command]:
        """The answer to `Staff`."""
        hello, decision = self.about.hello, self.about.decision
        if self.state is not State.STAFF or hello is None or hello.sni is None or decision is None:
            return []
        self.state, self.about.is_decrypted = State.HANDED, True
        held = self._drop_held()
        self._first = held[0] if held else b""
        handed = Record(self.about.handed(worker))
        order = Hand(worker, self.about.hand_over(hello, hello.sni, decision))
        return [handed, order, *(command for datagram in held for command in self._heard(datagram))]

    def unstaffed(self, why: str) -> Sequence[Command]:
        """The other answer; or it could not be handed over."""
        if self.state is State.HANDED:
            self.about.is_decrypted = False
            return [LetGo(), *self._undecrypted(why)]
        return self._undecrypted(why) if self.state is State.STAFF else []

    def worker_said(self, ended: FlowEnded, now_s: float) -> Sequence[Command]:
        """The worker is done with it."""
        if self.state is not State.HANDED:
            return []
        outcome = self.about.said(ended)
        assert self._decrypting is not None
        self._decrypting.ended(self.about.kind, ended, outcome, now_s)
        return self._handed_back(outcome, now_s)

    def cut(self, why: str, outcome: Outcome, now_s: float) -> Sequence[Command]:
        """A worker has it, and it has to end now: so that is switched off, or the worker has died."""
        if self.state is not State.HANDED:
            return []
        self.about.error = why
        return self._handed_back(outcome, now_s)

    def _handed_back(self, outcome: Outcome, now_s: float) -> Sequence[Command]:
        """Who has heard nothing by now is told to use TCP."""
        self.state = State.REFUSED
        told = self._refuses(self._first) if not self.about.received else []
        return [Record(self.about.seen(outcome, now_s)), LetGo(), *told]

    # -- the hello -----------------------------------------------------------------------------------------------------
    def _opens(self, datagram: bytes) -> Sequence[Command]:
        if is_unreadable_version(datagram):
            return _told_of_versions(datagram)
        if _is_dishonest(datagram) or not self._hold(datagram):
            return []
        is_handshake = datagram[:1] >= LONG_HEADER
        if is_handshake or len(self._held) == 1:  # a packet of a later stage may have overtaken the first
            self._opening.fed(datagram)
        if self._opening.held_bytes > PIECES_LIMIT_BYTES:
            self._opening = QuicOpening(self._cipher)
        return self._decide() if self._is_owned else []

    def _hold(self, datagram: bytes) -> bool:
        """What finds no room is dropped, as by a network that is full: it is sent again."""
        if len(self._held) >= HELD_LIMIT or self.held_bytes + len(datagram) > HELD_LIMIT_BYTES:
            return False
        self._held.append(datagram)
        self.held_bytes += len(datagram)
        return True

    def _drop_held(self) -> list[bytes]:
        held, self._held, self.held_bytes = self._held, [], 0
        self._opening = QuicOpening(self._cipher)
        return held

    def _decide(self) -> Sequence[Command]:
        """The owner is known."""
        match self._opening.answer:
            case NeedMore():
                return []
            case Malformed() if self._held and self._held[0][:1] < LONG_HEADER:
                return self._nameless()
            case Malformed(reason=reason):
                return self._unreadable(reason)
            case ClientHello() as hello:
                self._begins_with(self._opening)
                return self._judge(hello)
            case _:
                assert_never(self._opening.answer)

    def _nameless(self) -> Sequence[Command]:
        """It is no QUIC, or has begun before anybody of us saw it. Should a hello come later, it is judged then."""
        if not self._policy.can_judge(self.about.process):
            return self._unjudged("owner_unread", UNREAD)
        said = self._said(NOTHING_SHOWN, is_proven=True)
        return self._follow(said)

    def _judge(self, hello: ClientHello) -> Sequence[Command]:
        self.about.hello = hello
        if not self._policy.can_judge(self.about.process):
            return self._unjudged("owner_unread", UNREAD)
        shown = Shown(protocol=Protocol.QUIC, name=hello.sni, alpn=hello.alpn, ja4=hello.ja4, ech=hello.ech)
        said = self._said(shown, is_proven=self.about.is_proven(hello.sni))
        is_only_unproven = said.action is Action.DECRYPT and self._said(shown, is_proven=True).action is Action.BYPASS
        if is_only_unproven and self._decrypting is None:
            return self._block(said, f"{said.reason}; over QUIC it cannot be, so the program is to fall back to TCP")
        return self._follow(said)

    def _said(self, shown: Shown, *, is_proven: bool) -> Decision:
        remote = self.origin.remote
        return self._policy.at_hello(self.about.process, remote, self._at_s, shown=shown, proven=is_proven)

    def _unreadable(self, reason: str) -> Sequence[Command]:
        """The name is hidden: nothing passes that a name could have refused."""
        if not self._policy.can_judge(self.about.process):
            return self._unjudged("owner_unread", UNREAD)
        self.about.error = reason
        early = self._policy.at_connect(self.about.process, self.origin.remote, self._at_s)
        if early is None or any(rule.is_of_quic_only for rule in self._policy.rules):
            nameless = self._said(NOTHING_SHOWN, is_proven=True)
            return self._block(nameless, "a rule may decide by the name, and none can be read", Outcome.MALFORMED)
        self._is_settled = True
        return self._follow(early)

    def _unjudged(self, what: str, reason: str) -> Sequence[Command]:
        self._is_owned = self._is_settled = True
        failed = self._terms.on_failure
        action = Action.BLOCK if failed is OnFailure.CLOSED else Action.BYPASS
        decision = Decision(action=action, rule=CANNOT_DECIDE, reason=reason)
        rest = self._block(decision) if action is Action.BLOCK else self._let_pass(decision)
        return [Report(what, failed, reason), *rest]

    # -- what was decided ----------------------------------------------------------------------------------------------
    def _follow(self, said: Decision) -> Sequence[Command]:
        match said.action:
            case Action.BLOCK:
                return self._block(said)
            case Action.DECRYPT if self._decrypting is not None:
                return self._decrypt(said, self._decrypting)
            case Action.DECRYPT | Action.BYPASS | Action.CAPTURE:
                return self._let_pass(said)
            case _:
                assert_never(said.action)

    def _decrypt(self, said: Decision, decrypting: Decrypting) -> Sequence[Command]:
        if decrypting.off:
            reason = f"mitmsec is switched off; else decrypted: {said.reason}"
            return self._let_pass(replace(said, action=Action.BYPASS, reason=reason))
        self.about.decision = said
        why = decrypting.obstacle(self.about.hello, said, self.about.kind, self.last_s)
        if self.state is State.PASSING:
            why = "its flow passes unread already"
        if why:
            return self._undecrypted(why)
        self.state = State.STAFF
        return [Staff()]

    def _undecrypted(self, why: str) -> Sequence[Command]:
        said = self.about.decision
        assert said is not None
        reason = f"{said.reason}; over QUIC it is not: {why}, so the program is to fall back to TCP"
        return self._block(said, reason)

    def _let_pass(self, said: Decision) -> Sequence[Command]:
        """What was held may have other hellos in it: each is heard as if it came now."""
        self.about.decision, self.state = said, State.PASSING
        return [command for datagram in self._drop_held() for command in self._heard(datagram)]

    def _forwarded(self, datagram: bytes) -> Sequence[Command]:
        self.about.sent += 1
        self.about.sent_bytes += len(datagram)
        return [Deliver(datagram) if self.state is State.HANDED else Forward(datagram)]

    def _block(self, said: Decision, reason: str = "", outcome: Outcome = Outcome.BLOCKED) -> Sequence[Command]:
        self.about.decision = Decision(action=Action.BLOCK, rule=said.rule, reason=reason or said.reason)
        self.state = State.REFUSED
        held = self._drop_held()
        return [*self._refuses(held[0] if held else self._first), Record(self.about.seen(outcome, self.last_s))]

    def _refuses(self, datagram: bytes) -> Sequence[Command]:
        answer = refusal(datagram, self._cipher) if self._refusals < REFUSALS_LIMIT else None
        if answer is None:
            return []
        self._refusals += 1
        return [Answer(answer)]

    # -- what passes ---------------------------------------------------------------------------------------------------
    def _passes(self, datagram: bytes) -> Sequence[Command]:
        """Unread, but for another connection's first packets; not even those where no name could change anything.

        A worker has one connection, and no more.
        """
        if self._is_settled or datagram[:1] < LONG_HEADER:
            return self._forwarded(datagram)
        if is_unreadable_version(datagram):
            return _told_of_versions(datagram)
        if _is_dishonest(datagram):
            return []
        answers = {self._agrees(one) for one in initials(datagram)}
        if answers == {None}:
            return self._refuses(datagram) if self.state is State.HANDED else self._begins(datagram)
        return self._forwarded(datagram) if answers <= {True} else []

    def _agrees(self, initial: Initial) -> bool | None:
        """With what its connection has said before; None: it belongs to none that is known."""
        answers = (known.agrees(initial) for known in self._begun)
        return next((answer for answer in answers if answer is not None), None)

    def _begins(self, datagram: bytes) -> Sequence[Command]:
        """Another connection; what no key opens is held with it, and goes nowhere."""
        opening = self._again or QuicOpening(self._cipher)
        answer = opening.fed(datagram)
        self._again = opening if opening.held_bytes <= PIECES_LIMIT_BYTES else None
        if isinstance(answer, NeedMore):
            self._hold(datagram)
            return []
        self._again = None
        if isinstance(answer, Malformed) or not self._hold(datagram):
            self._drop_held()
            return []
        return self._begins_again(answer, opening)

    def _begins_again(self, hello: ClientHello, opening: QuicOpening) -> Sequence[Command]:
        assert self.about.decision is not None
        is_another = self.about.hello is not None and hello.sni != self.about.hello.sni
        if is_another or len(self._begun) >= CONNECTIONS_LIMIT or self._begun_bytes >= BEGUN_LIMIT_BYTES:
            return self._block(self.about.decision, ANOTHER_HOST)
        self._begins_with(opening)
        return self._judge(hello)

    def _begins_with(self, opening: QuicOpening) -> None:
        assert opening.begun is not None
        self._begun.append(opening.begun)

    @property
    def _begun_bytes(self) -> int:
        return sum(known.held_bytes for known in self._begun)

    def _lives_long(self, now_s: float) -> Sequence[Command]:
        if self.state not in (State.PASSING, State.HANDED) or self._told_open or not self.selected:
            return []
        if now_s - self.about.began_s < LONG_LIVED_S:
            return []
        self._told_open = True
        return [Record(self.about.seen(Outcome.OPEN, now_s))]


def _is_dishonest(datagram: bytes) -> bool:
    """It has Initials of two connections, or is smaller than one with an Initial may be: servers drop it."""
    found = connections(datagram)
    return len(found) > 1 or (bool(found) and len(datagram) < SMALLEST_BYTES)


def _told_of_versions(datagram: bytes) -> Sequence[Command]:
    answer = version_negotiation(datagram)
    return [] if answer is None else [Answer(answer)]
