"""One flow's mind: events in, commands out. No socket and no clock of its own: every path can be written as a test.

    Accepted ─► OWNER ─ Ask ─► at_connect ─► FIRST ──────────────── at_hello ─► ┬ Page | Reset | STAFF        block
       │ no origin                           │  ▲                              ├ Relay, RELAYED              bypass
       └► Reset (stranger)                   ▼  │ Peek, Dial, WatchServer      ├ Relay with a tee, RELAYED   capture
                                      whoever speaks first                     └ STAFF ─► Mint, HandOver, HANDED
                                             ▲                                              │ a dialogue goes on to TLS
                                             └────────────────── TakeBack, Peek ◄───────────┘

In FIRST two things run side by side: the first bytes are awaited and, as soon as a decision allows it, the origin is
dialled. No origin is contacted before a decision that lets it be contacted:

- `at_connect` decided: dial at once. `at_hello` still has the last word, because its decision is the one of the name.
- It did not: wait for a hello for `hello_deadline_s`, then dial, unless every rule blocks that could still decide. If
  the client then says something before anything was relayed, that decides: nothing is gained by being slow.
- Block never dials. It waits for the first bytes as well, for the record and for the page that HTTP gets. Where the
  rule wants that page in TLS, too, a worker gets the client's socket and nothing else; whatever fails, it is a reset.

Where the policy wants a name confirmed and no DNS answer does that, the origin is asked for its certificate (`Prove`)
before the decision is followed: a bypass by that name let it be contacted.

A server that speaks first settles the protocol, which decides; there is no name then. Bytes that claim to be TLS or
HTTP and break its rules, or stop half way, hide their name ("malformed"): they are reset, whatever `on_failure` says,
unless `at_connect` had answered bypass or capture, which no first bytes could have changed.

A dialogue that may go on to TLS (SMTP, …) is handed over as it is. When both ends have agreed to TLS the worker lets go
of it, and the flow is in FIRST once more: the hello in it is peeked, and its name decides, as that of any other. So
does what a client says through the tunnel that it has asked a proxy for (HTTP's CONNECT, SOCKS).

Where mitmsec itself cannot act, `on_failure` decides between a reset and a relay that nobody reads; a fault says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome
from mitmsec.core import sniff
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, Upgrading
from mitmsec.core.model import Action, Decision, Direction, Endpoint, OnFailure, Process
from mitmsec.core.sniff import FIRST_BYTES_LIMIT, NOTHING_SHOWN, Malformed, NeedMore, Protocol, Sniffed
from mitmsec.gate import signals as s
from mitmsec.gate.account import DIAL_OUTCOMES, RELAY_OUTCOMES, UNSELECTED, Account
from mitmsec.gate.claims import TLS_RECORD, claims
from mitmsec.gate.learned import Kind, Learned
from mitmsec.gate.names import Names
from mitmsec.gate.signals import AnyCommand, AnyEvent, DialFailure, Ending
from mitmsec.gate.terms import Decides, Dialling, Health, State, Terms

__all__ = ["Flow", "State"]

CANNOT_DECIDE = "on_failure"  # the rule on record where our own failure decided
NO_HELLO = "no TLS where both sides agreed to it"

type Commands = list[AnyCommand]


class Flow:
    """One accepted connection, from `Accepted` to its record. Deaf after its end. Times are monotonic seconds."""

    def __init__(
        self, flow: str, terms: Terms, policy: Decides, names: Names, health: Health, learned: Learned | None = None
    ) -> None:
        self.about = Account(flow, terms.policy)
        self.state = State.OWNER
        self.worker = -1
        self._terms, self._policy, self._names, self._health = terms, policy, names, health
        self._learned = Learned() if learned is None else learned
        self._kind: Kind | None = None  # once a worker has it, if something can be learned of it
        self._fault = ""
        self._heard = False  # some first bytes, not enough of them
        self._begun = False  # a hello or a request, not its end
        self._by_greeting = False  # what the server says first may decide
        self._is_proving = False  # the origin is asked whether it can prove the name
        self._greeted_bytes = 0  # of a greeting that is not all there
        self._early: Action | None = None  # what holds whatever the name
        self._dialling = Dialling.NOT
        self._failure: DialFailure | None = None
        self._moved_bytes = -1  # when the client that a worker has was last seen to have left
        self._now_s = 0.0

    def told(self, event: AnyEvent, now_s: float) -> Sequence[AnyCommand]:
        """What `event` leads to, in order. What no longer matters in the flow's state leads to nothing."""
        self._now_s = now_s
        if self.state is State.ENDED:
            return []
        match event:  # the frequent ones first: each case before costs
            case s.Accepted():
                return self._accepted(event)
            case s.OwnerKnown(process=process, selected=selected):
                if self.state is not State.OWNER:
                    return []
                return self._owned(process) if selected else self._pass_by(process)
            case s.FirstBytes(data=data, eof=eof):
                return self._first_bytes(data, eof) if self._awaits_bytes else []
            case s.Dialled(remote=remote):
                return self._dialled(remote) if self.state is State.FIRST else []
            case s.RelayEnded(ending=ending, sent=sent, received=received):
                return self._relay_ended(ending, sent, received) if self.state is State.RELAYED else []
            case s.Staffed(worker=worker):
                return self._staffed(worker) if self.state is State.STAFF else []
            case s.ClientLeft(moved_bytes=moved_bytes):
                return self._client_left(moved_bytes) if self.state is State.HANDED else []
            case s.WorkerSaid(ended=ended):
                return self._worker_said(ended) if self.state is State.HANDED else []
            case s.ClientGone():
                return self._end(Outcome.CLIENT_CLOSED, s.Reset()) if self.state is State.FIRST else []
            case s.Deadline():
                return self._deadline()
            case s.DialFailed(failure=failure):
                return self._dial_failed(failure) if self.state is State.FIRST else []
            case s.ServerSpoke(data=data):
                return self._server_spoke(data) if self._awaits_bytes else []
            case s.ServerGone():
                return self._end(Outcome.ORIGIN_RESET, s.Reset()) if self._awaits_bytes else []
            case s.Unstaffed():
                return [s.SetDeadline(self._terms.staff_deadline_s)] if self.state is State.STAFF else []
            case s.Proved(holds=holds):
                return self._proved(holds) if self._is_proving else []
            case s.WorkerUpgrades(upgrading=upgrading):
                return self._upgrades(upgrading) if self.state is State.HANDED else []
            case s.WorkerDied():
                return self._end(self._failed, s.Reset(), error="worker_died") if self.state is State.HANDED else []
            case s.LongLived(sent=sent, received=received):
                return self._long_lived(sent, received) if self.about.decision is not None else []
            case s.Cut(why=why, outcome=outcome):
                return self._end(outcome, s.Reset(), error=why)
            case s.Faulted(detail=detail):
                return self._faulted(detail)
            case _:
                assert_never(event)

    @property
    def _awaits_bytes(self) -> bool:
        return self.state is State.FIRST and self.about.first is None

    # -- whose ---------------------------------------------------------------------------------------------------------
    def _accepted(self, event: s.Accepted) -> Commands:
        self.about.accepted(event, self._now_s)
        if event.origin is None:
            return [s.Report("stranger", detail=f"from {event.client}"), *self._end(Outcome.STRANGER, s.Reset())]
        return [s.SetDeadline(self._terms.owner_deadline_s), s.Ask(event.origin)]

    def _owned(self, process: Process) -> Commands:
        self.about.process = process
        if not self._health.recording and self._terms.on_failure is OnFailure.CLOSED:
            return self._refuse_ours("recorder_gone")
        if not self._policy.can_judge(process):
            return self._not_judged("owner_unread", "what the policy asks about its program could not be read")
        self.state = State.FIRST
        self.about.decision = self._policy.at_connect(process, self.about.remote, self.about.at_s)
        self._early = self.about.decision.action if self.about.decision is not None else None
        if self._early is None or self._early is Action.BLOCK:
            return [s.SetDeadline(self._terms.hello_deadline_s), s.Peek(1)]
        return [s.SetDeadline(None), *self._dial((self.about.remote,)), s.Peek(1)]

    def _pass_by(self, process: Process) -> Commands:
        """Joined as if the hook had let it go, whatever state we are in; nothing of it is kept."""
        self.about.process, self.about.selected = process, False
        self.about.decision, self.about.first = UNSELECTED, Sniffed(protocol=Protocol.TCP)
        self.state = State.FIRST
        return self._settled(UNSELECTED)

    # -- first bytes ---------------------------------------------------------------------------------------------------
    def _first_bytes(self, data: bytes, eof: bool) -> Commands:
        if not data:
            return self._silent_end()
        if self.about.upgraded and not data.startswith(TLS_RECORD):
            return self._settle_malformed(NO_HELLO)
        first = sniff.first_bytes(data)
        match first:
            case Sniffed():
                self.about.begins(data, first)
                return self._settle(first)
            case Malformed(reason=reason):
                return self._settle_malformed(reason)
            case NeedMore(size_bytes=size_bytes):
                if eof or len(data) >= FIRST_BYTES_LIMIT:
                    self._begun = self._begun or claims(data)
                    return self._out_of_time()
                wanted = min(max(size_bytes or 0, len(data) + 1), FIRST_BYTES_LIMIT)
                return [*self._more_time(data), s.Peek(wanted)]
            case _:
                assert_never(first)

    def _more_time(self, data: bytes) -> Commands:
        """Once for what may be nothing that we know, once for what has clearly begun; never with each byte."""
        first_heard, self._heard = not self._heard, True
        if not self._begun and claims(data):
            self._begun = True
            return [s.SetDeadline(self._terms.hello_end_deadline_s)]
        return [s.SetDeadline(self._terms.hello_deadline_s)] if first_heard else []

    def _out_of_time(self) -> Commands:
        if self._begun:
            return self._settle_malformed("incomplete")
        if self.about.upgraded:
            return self._end(Outcome.CLIENT_CLOSED, s.Reset(), error="no hello in time, after both sides agreed to TLS")
        return self._settle(Sniffed(protocol=Protocol.TCP))

    def _silent_end(self) -> Commands:
        """The client is done and has said nothing: gone, unless a server is there that may speak."""
        if self.about.decision is None or self.about.upgraded:
            return self._end(Outcome.CLIENT_CLOSED, s.Close())
        if self._by_greeting:  # not for long: it may wait for this very end
            return [s.SetDeadline(self._terms.hello_deadline_s)]
        return self._settle(Sniffed(protocol=Protocol.TCP))

    def _settle_malformed(self, reason: str) -> Commands:
        """The name is hidden: nothing goes on that a name could have changed, nor anything that was to be read."""
        self.about.malformed = reason
        if self._early is not None and self._early is not Action.DECRYPT:
            return self._settle(Sniffed(protocol=Protocol.TCP))
        self.about.done = Action.BLOCK
        return self._end(Outcome.MALFORMED, s.Reset())

    def _settle(self, first: Sniffed) -> Commands:
        """The first bytes are known for what they are: the last word of the policy."""
        if self.about.upgraded and first.hello is None:
            return self._settle_malformed(NO_HELLO)
        self.about.settled(first)
        self.about.decision = self._at_hello(first, self.about.remote)
        return self._prove(first) or self._settled(self.about.decision)

    def _at_hello(self, first: Sniffed, remote: Endpoint) -> Decision:
        about = self.about
        if about.certified is None:
            return self._said(first, remote, proven=about.is_proven(first))
        said = self._said(first, remote, proven=about.certified)
        confirms = "confirms" if about.certified else "does not confirm"
        return replace(said, reason=f"{said.reason}; the origin's certificate {confirms} the name")

    def _said(self, first: Sniffed, remote: Endpoint, *, proven: bool) -> Decision:
        about = self.about
        said = self._policy.at_hello(about.process, remote, about.at_s, shown=about.shown(first), proven=proven)
        if first.hello is None:
            return said
        return self._learned.decided(said, about.kind(first, remote), self._now_s, is_proven=proven)

    def _prove(self, first: Sniffed) -> Commands:
        """Ask the origin, where the decision hangs on a name that no DNS answer confirms and it could; else nothing."""
        about = self.about
        if not self._terms.probes or first.hello is None or first.name is None:
            return []
        if about.upgraded or about.through is not None:  # at that address nobody begins with a hello
            return []
        if about.direction is Direction.INBOUND or self._said(first, about.remote, proven=True) == about.decision:
            return []
        self._is_proving = True
        return [s.SetDeadline(None), s.Prove(first.name, about.remote)]

    def _proved(self, holds: bool) -> Commands:
        assert self.about.first is not None
        self._is_proving, self.about.certified = False, holds
        self.about.decision = self._at_hello(self.about.first, self.about.remote)
        return self._settled(self.about.decision)

    def _settled(self, decision: Decision) -> Commands:
        commands = self._follow(decision)
        return commands if self.state is State.ENDED else [s.SetDeadline(None), *commands]

    def _server_spoke(self, data: bytes) -> Commands:
        if self._begun:  # no server answers half a hello
            return self._settle_malformed("incomplete")
        greeting = sniff.server_bytes(data) if data else Protocol.TCP
        if isinstance(greeting, Protocol):
            return self._settle(Sniffed(protocol=greeting))
        before, self._greeted_bytes = self._greeted_bytes, len(data)
        if not self._hears_out or len(data) <= before:  # the second: it has ended
            return self._settle(Sniffed(protocol=Protocol.TCP))
        watch = s.WatchServer(max(greeting.size_bytes or 0, len(data) + 1))
        return [watch] if before else [s.SetDeadline(self._terms.hello_deadline_s), watch]

    @property
    def _hears_out(self) -> bool:
        """Whether a greeting that comes in pieces could decide, or what it is matters to who is to read it."""
        return self._by_greeting or (self.about.decision is not None and self.about.decision.action is Action.DECRYPT)

    # -- time is up ----------------------------------------------------------------------------------------------------
    def _deadline(self) -> Commands:
        match self.state:
            case State.OWNER:
                return self._owner_unknown()
            case State.FIRST if self.about.first is None:
                return self._first_deadline()
            case State.STAFF:
                return self._fail("no_worker")
            case State.HANDED:
                return [s.WatchClient()]
            case _:
                return []

    def _owner_unknown(self) -> Commands:
        """Open: a policy that asks for programs has no answer; another one's is the same for every process."""
        if self._terms.on_failure is OnFailure.CLOSED or self._asks_programs():
            return self._not_judged("owner_unknown", "whose it is stayed unknown")
        return [s.Report("owner_unknown", OnFailure.OPEN), *self._owned(self.about.process)]

    def _asks_programs(self) -> bool:
        return any(rule.asks_process for rule in self._policy.rules if rule.direction is self.about.direction)

    def _not_judged(self, what: str, reason: str) -> Commands:
        """A rule that asks for the program may be the one that says block, or bypass."""
        if self._terms.on_failure is OnFailure.CLOSED:
            self.about.decision = Decision(action=Action.BLOCK, rule=CANNOT_DECIDE, reason=reason)
            return self._refuse_ours(what)
        return [s.Report(what, OnFailure.OPEN, reason), *self._let_through(what, reason)]

    def _first_deadline(self) -> Commands:
        if self._dialling is Dialling.FAILED:
            return self._give_up()
        if self._heard or self.about.decision is not None:
            return self._out_of_time()
        decision, is_last = self._policy.at_silence(self.about.process, self.about.remote, self.about.at_s)
        self.about.decision, self._by_greeting = decision, not is_last
        if decision.action is Action.BLOCK:
            return self._block()
        return self._dial((self.about.remote,))

    # -- the origin ----------------------------------------------------------------------------------------------------
    def _dial(self, endpoints: tuple[Endpoint, ...]) -> Commands:
        self._dialling = Dialling.TRYING
        return [s.Dial(endpoints)]

    def _others(self) -> tuple[Endpoint, ...]:
        """Further addresses of the name, of which the policy says exactly the same."""
        first, decision = self.about.first, self.about.decision
        if first is None or first.hello is None or first.name is None or decision is None:
            return ()
        others = self._names.others(first.name, self.about.remote, decision.action)
        return tuple(other for other in others if self._at_hello(first, other) == decision)

    def _dialled(self, remote: Endpoint) -> Commands:
        self._dialling, self.about.remote = Dialling.DONE, remote
        if self.about.first is None:
            return [s.WatchServer()]
        assert self.about.decision is not None
        return [] if self._is_proving else self._follow(self.about.decision)

    def _dial_failed(self, failure: DialFailure) -> Commands:
        """Without a name yet, wait for it: it may know other addresses, and the client believes to be connected."""
        self._dialling, self._failure = Dialling.FAILED, self._failure or failure
        if self.about.first is not None:
            return self._give_up()
        return [] if self._begun else [s.SetDeadline(self._terms.hello_deadline_s)]

    def _give_up(self) -> Commands:
        why = self._failure or DialFailure.FAULT
        if why is DialFailure.FAULT:  # without a socket there is nothing to let through
            return self._refuse_ours("not_dialled")
        return self._end(DIAL_OUTCOMES[why], s.Reset())

    # -- what was decided ----------------------------------------------------------------------------------------------
    def _follow(self, decision: Decision) -> Commands:
        """Do what `decision` says, or get the origin that it takes."""
        if decision.action is Action.BLOCK:
            return self._block()
        match self._dialling:
            case Dialling.DONE:
                return self._carry(decision.action)
            case Dialling.NOT:
                return self._dial((self.about.remote, *self._others()))
            case Dialling.TRYING | Dialling.FAILED as state:
                if others := self._others():
                    return self._dial(others)
                return [] if state is Dialling.TRYING else self._give_up()
            case _:
                assert_never(self._dialling)

    def _block(self) -> Commands:
        assert self.about.decision is not None
        if self.about.may_have_page_inside and not self._health.off:
            before, self._dialling = self._dialling, Dialling.NOT
            return [*([] if before is Dialling.NOT else [s.Undial()]), *self._staff()]
        page = s.Page(self.about.decision.rule, self.about.decision.reason)
        return self._end(Outcome.BLOCKED, page if self.about.may_have_page else s.Reset())

    def _carry(self, action: Action) -> Commands:
        if action is Action.DECRYPT and self._health.off:
            return self._switched_off()
        if action is Action.DECRYPT:
            return self._decrypt()
        self._remember()  # the program itself asks for the proof
        return self._relay(tee=action is Action.CAPTURE and self._terms.capture)

    def _decrypt(self) -> Commands:
        kind = self.about.plaintext
        if kind is None:
            return self._unreadable()
        if kind is not Plaintext.DIALOGUE and not self.about.called:  # a certificate for whom?
            return self._fail("tunnel_unnamed")
        return self._staff()

    def _switched_off(self) -> Commands:
        assert self.about.decision is not None
        reason = f"mitmsec is switched off; else decrypted: {self.about.decision.reason}"
        self.about.decision, self.about.done = replace(self.about.decision, reason=reason), Action.BYPASS
        return self._relay(tee=False)

    def _remember(self) -> None:
        """The origin is one that answers for the name."""
        first, decision = self.about.first, self.about.decision
        if first is None or first.hello is None or self.about.through is not None:  # the address is a proxy's
            return
        if self.about.is_blocked:  # and was never contacted, whatever a worker says
            return
        if first.name is not None and decision is not None:
            self._names.answered(first.name, self.about.remote, decision.action)

    def _unreadable(self) -> Commands:
        """No worker could read it. Where it is HTTP in disguise and was to be inspected, that is a failure."""
        assert self.about.decision is not None
        report: Commands = []
        if self.about.decision.inspect and self.about.is_wrapped_http:
            if self._terms.on_failure is OnFailure.CLOSED:
                return self._refuse_ours("not_inspected")
            report = [s.Report("not_inspected", OnFailure.OPEN, f"{self.about.protocol} is relayed")]
        self.about.done = Action.CAPTURE
        return [*report, *self._relay(tee=self._terms.capture)]

    def _relay(self, *, tee: bool) -> Commands:
        self.state = State.RELAYED
        return [s.Relay(tee)]

    # -- workers -------------------------------------------------------------------------------------------------------
    def _staff(self) -> Commands:
        self.state = State.STAFF
        if not self._health.recording:
            return self._fail("recorder_gone")
        if not self._health.signing and self.about.is_minted:
            return self._fail("signer_gone")
        return [s.Staff(self.worker)]

    def _staffed(self, worker: int) -> Commands:
        assert self.about.decision is not None
        assert self.about.first is not None
        kind, name = self.about.plaintext, self.about.called
        assert kind is not None
        self.state, self.worker = State.HANDED, worker
        if kind is Plaintext.DIALOGUE:
            self.about.done = Action.CAPTURE  # until there is something to decrypt
        if self.about.first.hello is not None and not self.about.is_blocked:
            self._kind = self.about.kind(self.about.first, self.about.remote)
            self._learned.handed(self._kind)
        return [
            s.SetDeadline(None),
            s.Record(self.about.handed(worker)),
            *([s.Mint(name)] if self.about.is_minted else []),
            s.Hand(worker, self._order(kind, name, self.about.decision)),
            s.WatchClient(),
        ]

    def _order(self, kind: Plaintext, name: str, decision: Decision) -> HandOver:
        http3, is_led = self._terms.offers.h3, self._terms.decrypts_quic
        return self.about.hand_over(kind, name, decision, http3=http3, http3_led=is_led)

    def _upgrades(self, upgrading: Upgrading) -> Commands:
        """Decide again, with the hello: it lies on the client's socket, where no worker can put another into it.

        What comes through a tunnel is decided as any flow whose origin is connected: by whoever speaks first, however
        late. Nothing is gained by being slow.
        """
        if self.about.plaintext is not Plaintext.DIALOGUE:  # no honest worker says so
            return self._end(Outcome.FAULT, s.Reset(), error="foreign_upgrade")
        within_s = None if self.about.tunnel else self._terms.upgrade_deadline_s
        watch: Commands = [s.WatchServer()] if self.about.tunnel else []
        self.about.upgrades(upgrading)
        self.state, self._heard, self._begun, self._moved_bytes = State.FIRST, False, False, -1
        self._greeted_bytes = 0
        return [s.SetDeadline(within_s), s.TakeBack(), s.Peek(1), *watch]

    def _client_left(self, moved_bytes: int) -> Commands:
        """It may have ended its side only, and still be served; not for ever with nothing served."""
        if moved_bytes == self._moved_bytes:
            return self._end(Outcome.CLIENT_CLOSED, s.Reset(), error="the worker did not end it")
        self._moved_bytes = moved_bytes
        return [s.SetDeadline(self._terms.left_deadline_s)]

    def _worker_said(self, ended: FlowEnded) -> Commands:
        if ended.tls is not None and ended.tls.server is not None and ended.tls.server.verified:
            self._remember()
        return [
            *self._learn(ended),
            *self._over(s.Reset() if ended.reset else s.Close(), self.about.said(ended, self._now_s)),
        ]

    def _learn(self, ended: FlowEnded) -> Commands:
        assert self.about.decision is not None
        bypass = self._learned.heard(self._kind, ended, self.about.decision.learning, self._now_s)
        if bypass is None:
            return []
        return [s.Record(FaultSeen(what="learned_bypass", detail=str(bypass), failed="open", flow=self.about.flow))]

    # -- our own failures ----------------------------------------------------------------------------------------------
    def _fail(self, what: str) -> Commands:
        """The origin is connected, and what the policy wants cannot be done; or it is a page, without an origin."""
        if self.about.is_blocked:
            return [s.Report(what, OnFailure.CLOSED), *self._end(Outcome.BLOCKED, s.Reset(), error=what)]
        if self._terms.on_failure is OnFailure.CLOSED:
            return self._refuse_ours(what)
        self._fault, self.about.done = what, Action.BYPASS
        return [s.Report(what, OnFailure.OPEN, "relayed undecrypted"), *self._relay(tee=False)]

    def _refuse_ours(self, what: str) -> Commands:
        return [s.Report(what, OnFailure.CLOSED), *self._end(Outcome.FAULT, s.Reset(), error=what)]

    def _faulted(self, detail: str) -> Commands:
        """A bug of ours. Open means that the program gets its connection, if nothing has been given away yet."""
        report = s.Report("gate_failed", self._terms.on_failure, detail)
        is_over = self.about.is_blocked or self.state in (State.RELAYED, State.HANDED)
        if is_over or self._terms.on_failure is OnFailure.CLOSED:
            return [report, *self._end(self._failed, s.Reset(), error="gate_failed")]
        return [report, *self._let_through("gate_failed", detail)]

    @property
    def _failed(self) -> Outcome:
        """How it has ended where we fail it. What was to be blocked, is."""
        return Outcome.BLOCKED if self.about.is_blocked else Outcome.FAULT

    def _let_through(self, what: str, reason: str) -> Commands:
        self._fault, self._is_proving, self.about.first = what, False, Sniffed(protocol=Protocol.TCP)
        self.about.decision = Decision(action=Action.BYPASS, rule=CANNOT_DECIDE, reason=reason)
        self.state, self.about.protocol, self.about.done = State.FIRST, Protocol.TCP, None
        return self._settled(self.about.decision)

    # -- the record, and the end ---------------------------------------------------------------------------------------
    def _relay_ended(self, ending: Ending, sent: int, received: int) -> Commands:
        outcome, error = RELAY_OUTCOMES[ending]
        answer: AnyCommand = s.Close() if ending is Ending.ORDERLY else s.Reset()
        if self.about.malformed:
            outcome = Outcome.MALFORMED
        if self._fault:
            outcome, error = Outcome.FAULT, self._fault
        return self._end(outcome, answer, sent=sent, received=received, error=error)

    def _long_lived(self, sent: int, received: int) -> Commands:
        if not self.about.selected:
            return []
        return [s.Record(self.about.seen(Outcome.OPEN, self._now_s, sent=sent, received=received))]

    def _end(
        self, outcome: Outcome, answer: AnyCommand, *, sent: int = 0, received: int = 0, error: str = ""
    ) -> Commands:
        if self.about.decision is None:  # for the record: what the policy says of a flow without a name
            about = self.about
            about.decision = self._policy.at_hello(about.process, about.remote, about.at_s, shown=NOTHING_SHOWN)
        if self.about.is_blocked and self.state in (State.STAFF, State.HANDED):  # however its page ended
            outcome = Outcome.BLOCKED
        return self._over(answer, self.about.seen(outcome, self._now_s, sent=sent, received=received, error=error))

    def _over(self, answer: AnyCommand, seen: ConnectionSeen) -> Commands:
        self.state = State.ENDED
        self._learned.over(self._kind)
        record: Commands = [s.Record(seen)] if self.about.selected else []
        return [s.SetDeadline(None), answer, *record]
