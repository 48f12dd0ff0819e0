"""What is known about a flow, and the record that is made of it."""

from __future__ import annotations

from msgspec.structs import asdict, replace

from mitmsec.audit.event import ConnectionSeen, FlowHanded, NamedBy, Outcome
from mitmsec.core.address_names import Agreement, agreement
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts, Upgrading
from mitmsec.core.model import Action, Confidence, Decision, Direction, Endpoint, Process
from mitmsec.core.sniff import UPGRADABLE, Protocol, Shown, Sniffed
from mitmsec.gate.claims import connect_host
from mitmsec.gate.learned import Kind
from mitmsec.gate.signals import Accepted, DialFailure, Ending

UNSELECTED = Decision(action=Action.BYPASS, rule="selection", reason="its program is not selected")
STRANGER = Decision(action=Action.BLOCK, rule="gate", reason="no connection of this run: its hook did not divert it")
PLAINTEXT = {  # what workers read it as
    Protocol.HTTP: Plaintext.HTTP,
    Protocol.HTTP_PROXY: Plaintext.HTTP,  # but for a CONNECT
    Protocol.SOCKS: Plaintext.DIALOGUE,
    **dict.fromkeys(UPGRADABLE, Plaintext.DIALOGUE),
}
HTTP_BY_ALPN = frozenset({"h2", "http/1.1", "http/1.0"})  # as workers speak it
WITH_PAGE = frozenset({Protocol.HTTP, Protocol.HTTP_PROXY})
DIAL_OUTCOMES = {
    DialFailure.FAULT: Outcome.FAULT,
    DialFailure.REFUSED: Outcome.ORIGIN_REFUSED,
    DialFailure.RESET: Outcome.ORIGIN_RESET,
    DialFailure.TIMEOUT: Outcome.ORIGIN_TIMEOUT,
    DialFailure.UNREACHABLE: Outcome.ORIGIN_UNREACHABLE,
}
RELAY_OUTCOMES = {
    Ending.CLIENT_RESET: (Outcome.COMPLETED, "reset by the client"),  # how many programs end an orderly exchange
    Ending.ORDERLY: (Outcome.COMPLETED, ""),
    Ending.ORIGIN_RESET: (Outcome.ORIGIN_RESET, ""),
    Ending.UNRECORDED: (Outcome.FAULT, "recorder_gone"),
}
WORKER_OUTCOMES = {  # what a worker can know; the other ends are the gate's to tell
    outcome.value: outcome
    for outcome in (
        Outcome.BLOCKED,
        Outcome.CLIENT_CLOSED,
        Outcome.CLIENT_REJECTED,
        Outcome.COMPLETED,
        Outcome.FAULT,
        Outcome.MALFORMED,
        Outcome.ORIGIN_CERTIFICATE,
        Outcome.ORIGIN_REFUSED,
        Outcome.ORIGIN_RESET,
        Outcome.ORIGIN_TIMEOUT,
        Outcome.ORIGIN_UNREACHABLE,
    )
}
TEXT_LIMIT = 256  # characters of any text of a worker's that goes on record
COUNT_LIMIT = 2**63 - 1
PORT_LIMIT = 2**16 - 1
OFFERS_LIMIT = 256  # characters of all that a hello offers by ALPN, and one more for each
NOWHERE = Endpoint(address="0.0.0.0", port=0)  # noqa: S104 - nobody listens there: it means "not known"


def within(count: int) -> int:
    """A worker's count, held to what a count can be."""
    return min(max(count, 0), COUNT_LIMIT)


def limited(text: str) -> str:
    """A worker's text, as long as it may be on record."""
    return text[:TEXT_LIMIT]


def limited_facts[Facts: (TlsClientFacts, TlsServerFacts)](facts: Facts) -> Facts:
    """`facts` with no text longer than `TEXT_LIMIT`."""
    texts = {name: limited(value) for name, value in asdict(facts).items() if isinstance(value, str)}
    return replace(facts, **texts)


def told_apart(process: Process) -> str:
    """A text that no two processes share, nor one before and after exec() of another program; none where the process
    is not known.
    """
    if process.confidence is not Confidence.KERNEL or process.started is None:
        return ""
    return f"{process.pid} {process.started} {process.user} {process.exe or process.claimed_exe}"


class Account:
    """Facts of one flow, filled in as they become known. Times are monotonic seconds."""

    __slots__ = (
        "asked", "at_s", "began_s", "certified", "client", "decision", "direction", "done", "first", "flow",
        "malformed", "policy", "process", "protocol", "received_before", "remote", "resolved", "selected",
        "sent_before", "target", "target_port", "through", "tunnel", "upgraded",
    )  # fmt: skip

    def __init__(self, flow: str, policy: str = "") -> None:
        """`policy` is the fingerprint of the one that decides."""
        self.flow, self.policy = flow, policy
        self.direction = Direction.OUTBOUND
        self.at_s = 0.0
        """When it began, by the clock on the wall: the policy is asked about that moment."""
        self.began_s = 0.0
        self.client = NOWHERE
        self.asked = self.remote = NOWHERE
        """The origin: as asked for, and once it is connected, as connected."""
        self.resolved: tuple[str, ...] | None = None
        """The names that DNS answers gave the address that was asked for, by then; None: nobody looks at them."""
        self.certified: bool | None = None
        """Whether the origin's certificate proves the name in the hello; None: it was not asked for."""
        self.process = Process(pid=0)
        self.selected = True
        """Whether any of this is to be recorded."""
        self.decision: Decision | None = None
        self.done: Action | None = None
        """Set where something else was done than decided."""
        self.first: Sniffed | None = None
        """What the first bytes are, once that is settled."""
        self.protocol = Protocol.TCP
        self.malformed = ""
        self.tunnel = False
        """The first bytes ask a proxy for a tunnel."""
        self.target = ""
        """The host to which it is to lead, as far as that was seen."""
        self.target_port = 0
        """And the port; 0: not seen."""
        self.through: Protocol | None = None
        """There is a tunnel, of this kind: `first` and `protocol` are what is spoken in there."""
        self.upgraded = False
        """A dialogue has gone on to TLS: `first` is what came then, `protocol` stays that of the dialogue."""
        self.sent_before = self.received_before = 0
        """Bytes on the client's leg, up to there."""

    def begins(self, data: bytes, first: Sniffed) -> None:
        """`data` are the first bytes, and are `first`: whether they ask for a tunnel, and where to."""
        host = connect_host(data) if first.protocol is Protocol.HTTP_PROXY else None
        self.tunnel = host is not None or first.protocol is Protocol.SOCKS
        if self.tunnel:
            self.target = host or ""

    @property
    def called(self) -> str:
        """Whom the client wants: the name that it shows, else an address; "" where neither was seen."""
        name = self.first.name if self.first is not None else None
        return name or (self.remote.address if self.through is None else self.target)

    @property
    def plaintext(self) -> Plaintext | None:
        """What a worker is to read it as; None: it cannot, nor TLS that came in without its service's key."""
        if self.is_tls:
            return Plaintext.TLS if self.is_minted or self.service else None
        if self.upgraded:
            return None
        return Plaintext.DIALOGUE if self.tunnel else PLAINTEXT.get(self.protocol)

    @property
    def is_tls(self) -> bool:
        """The client's hello has been seen."""
        return self.first is not None and self.first.hello is not None

    @property
    def service(self) -> str:
        """Whose key it is decrypted with."""
        return self.decision.service if self.decision is not None else ""

    @property
    def is_minted(self) -> bool:
        """Whether a certificate of ours is needed to decrypt it. For what comes in, none is ever made."""
        return self.is_tls and self.direction is Direction.OUTBOUND

    @property
    def may_have_page(self) -> bool:
        """Whether its client is told why it is blocked. Who comes from outside is not to hear of our rules."""
        return self.protocol in WITH_PAGE and self.direction is Direction.OUTBOUND

    @property
    def may_have_page_inside(self) -> bool:
        """Whether the policy wants that in TLS, and it can be: HTTP may be spoken there, and nobody else was before.

        Who encrypts its hello would never see the page, but learn that there is no ECH and show the name (RFC 9849).
        """
        if self.decision is None or not self.decision.page or not self.is_minted or self.first is None:
            return False
        hello = self.first.hello
        if self.through is not None or self.upgraded or (hello is not None and hello.ech):
            return False
        offers = hello.alpn if hello is not None else ()
        return not offers or not HTTP_BY_ALPN.isdisjoint(offers)

    @property
    def is_blocked(self) -> bool:
        """Nothing may let it through any more."""
        return self.decision is not None and self.decision.action is Action.BLOCK

    @property
    def is_wrapped_http(self) -> bool:
        """HTTP, but in a form that no worker reads."""
        return self.protocol is Protocol.HTTP2

    def accepted(self, event: Accepted, now_s: float) -> None:
        """What is known at first: until the supervisor answers, the kernel's word is all that is known of the owner."""
        self.began_s, self.client, self.remote = now_s, event.client, event.gate
        self.at_s = event.at_s
        origin = event.origin
        if origin is None:
            self.decision = STRANGER
            return
        self.asked = self.remote = origin.remote
        if origin.source is not None:
            self.client = Endpoint(address=origin.source, port=event.client.port)
        self.process = Process(pid=origin.pid)
        if origin.pid:
            user, uid, confidence = str(origin.uid), origin.uid, Confidence.INFERRED
            self.process = Process(pid=origin.pid, name=origin.comm, user=user, uid=uid, confidence=confidence)

    def handed(self, worker: int) -> FlowHanded:
        """From now on this worker may report on the flow."""
        return FlowHanded(
            flow=self.flow,
            process=self._told_process,
            worker=worker,
            host=self.first.name if self.first else None,
            local=self.client,
            remote=self.remote,
            direction=self.direction,
            keep_evidence_s=None if self.decision is None else self.decision.keep_evidence_s,
        )

    @property
    def _told_process(self) -> Process:
        """Of a connection that came in, who listens is known, not which of its heirs serves."""
        if self.direction is Direction.OUTBOUND or self.process.confidence is Confidence.UNKNOWN:
            return self.process
        return replace(self.process, confidence=Confidence.INFERRED)

    def hand_over(
        self, kind: Plaintext, name: str, decision: Decision, *, http3: bool = True, http3_led: bool = False
    ) -> HandOver:
        """What the worker has to know."""
        return HandOver(
            flow=self.flow,
            kind=kind,
            name=name,
            origin=self.remote,
            client=self.client,
            decision=decision,
            direction=self.direction,
            http3=http3 or self.direction is Direction.INBOUND,  # whom others reach is not for us to say
            http3_led=http3_led and self.direction is Direction.OUTBOUND,
            owner="" if self.direction is Direction.INBOUND else told_apart(self.process),
            protocol=self.protocol if kind is Plaintext.DIALOGUE else None,
            port=self.target_port,
        )

    def settled(self, first: Sniffed) -> None:
        """The first bytes are known for what they are."""
        self.first, self.done = first, None  # a dialogue was captured until now, and that was all
        if not self.upgraded:
            self.protocol = first.protocol

    def shown(self, first: Sniffed) -> Shown:
        """What the policy is asked about `first`: a dialogue that goes on under TLS stays what it was."""
        return replace(first.shown, protocol=self.protocol) if self.upgraded else first.shown

    def upgrades(self, upgrading: Upgrading) -> None:
        """What comes now is TLS; or, in a tunnel, anything."""
        if self.tunnel:
            self.through, self.tunnel = self.protocol, False
            self.target_port = upgrading.port if 0 < upgrading.port <= PORT_LIMIT else 0
        else:
            self.upgraded = True
        self.first = None
        self.sent_before = within(self.sent_before + within(upgrading.bytes_sent))
        self.received_before = within(self.received_before + within(upgrading.bytes_received))

    def seen(
        self,
        outcome: Outcome,
        now_s: float,
        *,
        sent: int,
        received: int,
        error: str = "",
        tls: TlsFacts | None = None,
    ) -> ConnectionSeen:
        """The event. `action` is what was done, `rule` and `reason` are why."""
        assert self.decision is not None
        sent, received = within(sent + self.sent_before), within(received + self.received_before)
        local, remote = self.client, self.remote
        if self.direction is Direction.INBOUND:  # it is the service's, and told from its side
            local, remote, sent, received = remote, local, received, sent
        if tls is None and self.is_tls:
            tls = TlsFacts(client=self.hello_facts())
        shown = self.first.name if self.first else None
        answered = self.resolved[0] if self.resolved and self.through is None else None
        return ConnectionSeen(
            flow=self.flow,
            process=self._told_process,
            protocol=self.protocol,
            local=local,
            remote=remote,
            direction=self.direction,
            host=shown or answered,
            named_by=NamedBy.DNS if answered and not shown else None,
            asked=self.asked if self.asked not in (self.remote, NOWHERE) else None,
            action=self.done or self.decision.action,
            rule=self.decision.rule,
            reason=self.decision.reason,
            bytes_sent=sent,
            bytes_received=received,
            duration_ms=max(round((now_s - self.began_s) * 1000), 0),
            outcome=outcome,
            error=error or self.malformed,
            tls=tls,
            policy=self.policy,
            through=self.through or "",
        )

    def said(self, ended: FlowEnded, now_s: float) -> ConnectionSeen:
        """The event of a worker's flow. A worker may be an attacker's: its words are held to what an end can be."""
        outcome = Outcome.BLOCKED if self.is_blocked else WORKER_OUTCOMES.get(ended.outcome, Outcome.FAULT)
        return self.seen(
            outcome,
            now_s,
            sent=within(ended.bytes_sent),
            received=within(ended.bytes_received),
            error=limited(ended.error),
            tls=self.facts_with(ended),
        )

    def given_up(self, detail: str, now_s: float) -> ConnectionSeen:
        """The event of a flow that could not even be ended as it should."""
        self.decision = self.decision or Decision(action=Action.BLOCK, rule="on_failure", reason=detail)
        return self.seen(Outcome.FAULT, now_s, sent=0, received=0, error="gate_failed")

    def hello_facts(self) -> TlsClientFacts:
        """What the client offered, by our own reading. Version, cipher and ALPN are settled by whoever answers it."""
        hello = self.first.hello if self.first else None
        if hello is None:
            return TlsClientFacts()
        return TlsClientFacts(
            sni=hello.sni,
            ja4=hello.ja4,
            ech=hello.ech or None,
            name_agrees=self.agreement,
            name_certified=self.certified,
            offers=hello.alpn if len("".join(hello.alpn)) + len(hello.alpn) <= OFFERS_LIMIT else None,
        )

    def kind(self, first: Sniffed, remote: Endpoint) -> Kind | None:
        """Whose flow it is and where it goes, as far as something can be learned of it."""
        address = remote.address if self.through is None else self.target
        return Kind.of(self.process, first.name or address, remote.port)

    def is_proven(self, first: Sniffed) -> bool:
        """DNS answers gave the name this address. Of what is behind a proxy, they say nothing."""
        return self.through is None and first.name is not None and first.name in (self.resolved or ())

    @property
    def agreement(self) -> Agreement | None:
        """What DNS answers say to the name in the hello; None: it shows none, nobody looks at them, or they are about a
        proxy.
        """
        name = self.first.hello.sni if self.first and self.first.hello else None
        if name is None or self.resolved is None or self.through is not None:
            return None
        return agreement(name, self.resolved)

    def facts_with(self, ended: FlowEnded) -> TlsFacts | None:
        """The worker's word on what was negotiated. What the client offered stays ours."""
        if not self.is_tls:
            return None
        mine, theirs = self.hello_facts(), ended.tls or TlsFacts()
        client = limited_facts(theirs.client or TlsClientFacts())
        return TlsFacts(
            client=replace(
                client,
                sni=mine.sni,
                ja4=mine.ja4,
                ech=mine.ech,
                name_agrees=mine.name_agrees,
                name_certified=mine.name_certified,
                offers=mine.offers,
            ),
            server=None if theirs.server is None else limited_facts(theirs.server),
        )
