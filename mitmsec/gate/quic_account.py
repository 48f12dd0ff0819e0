"""What is known about a flow of QUIC, and the record that is made of it."""

from __future__ import annotations

from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FlowHanded, NamedBy, Outcome
from mitmsec.core.address_names import agreement
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, TlsClientFacts, TlsFacts
from mitmsec.core.model import Action, Decision, Endpoint, Process
from mitmsec.gate.account import OFFERS_LIMIT, WORKER_OUTCOMES, limited, limited_facts, told_apart
from mitmsec.gate.learned import Kind
from mitmsec.gate.signals import Origin

PASSES = {
    Action.BYPASS: "QUIC passes unread",
    Action.CAPTURE: "QUIC passes, and is not captured",
    Action.DECRYPT: 'QUIC passes unread, by quic = "bypass"',
}


class QuicAccount:
    """Facts of one flow, filled in as they become known. Times are monotonic seconds."""

    __slots__ = (
        "_client", "_policy", "_resolved", "began_s", "decision", "error", "flow", "hello", "is_decrypted", "origin",
        "process", "received", "received_bytes", "sent", "sent_bytes", "told",
    )  # fmt: skip

    def __init__(
        self,
        flow: str,
        origin: Origin,
        client: Endpoint,
        policy: str,
        resolved: tuple[str, ...] | None,
        began_s: float,
    ) -> None:
        """`policy` is the fingerprint of the one that decides, `resolved` the names that DNS gave the address."""
        self.flow, self.origin, self.began_s = flow, origin, began_s
        self._client, self._policy, self._resolved = client, policy, resolved
        self.process = Process(pid=origin.pid, name=origin.comm)
        self.hello: ClientHello | None = None
        self.decision: Decision | None = None
        self.is_decrypted = False
        """A worker has it, or has had it."""
        self.told: TlsFacts | None = None
        """What that worker says of both handshakes."""
        self.error = ""
        self.sent = self.received = self.sent_bytes = self.received_bytes = 0
        """Datagrams and bytes on the client's leg."""

    def is_proven(self, name: str | None) -> bool:
        """DNS answers gave the name this address, or nobody looks at them."""
        return self._resolved is None or name in self._resolved

    @property
    def kind(self) -> Kind | None:
        """Whose flow it is and where it goes."""
        name = self.hello.sni if self.hello is not None else None
        return Kind.of(self.process, name or self.origin.remote.address, self.origin.remote.port)

    @property
    def _local(self) -> Endpoint:
        return Endpoint(address=self.origin.source or self._client.address, port=self._client.port)

    def handed(self, worker: int) -> FlowHanded:
        """From now on this worker may report on the flow."""
        return FlowHanded(
            flow=self.flow,
            process=self.process,
            worker=worker,
            host=self.hello.sni if self.hello is not None else None,
            local=self._local,
            remote=self.origin.remote,
            keep_evidence_s=None if self.decision is None else self.decision.keep_evidence_s,
        )

    def hand_over(self, hello: ClientHello, name: str, decision: Decision) -> HandOver:
        """What the worker has to know."""
        return HandOver(
            flow=self.flow,
            kind=Plaintext.QUIC,
            name=name,
            origin=self.origin.remote,
            client=self._local,
            decision=decision,
            http3_led=True,
            owner=told_apart(self.process),
            hello=hello.raw,
        )

    def said(self, ended: FlowEnded) -> Outcome:
        """A worker may be an attacker's: its words are held to what an end can be."""
        self.error, self.told = limited(ended.error), ended.tls
        return WORKER_OUTCOMES.get(ended.outcome, Outcome.FAULT)

    def seen(self, outcome: Outcome, now_s: float) -> ConnectionSeen:
        """The event. `action` is what was done, `rule` and `reason` are why."""
        decision, hello = self.decision, self.hello
        assert decision is not None
        answered = self._resolved[0] if self._resolved else None
        name = hello.sni if hello is not None else None
        is_passed = decision.action is not Action.BLOCK and not self.is_decrypted
        done = Action.DECRYPT if self.is_decrypted else Action.BYPASS if is_passed else Action.BLOCK
        return ConnectionSeen(
            flow=self.flow,
            process=self.process,
            protocol="quic",
            local=self._local,
            remote=self.origin.remote,
            host=name or answered,
            named_by=NamedBy.DNS if answered and not name else None,
            action=done,
            rule=decision.rule,
            reason=f"{decision.reason}; {PASSES[decision.action]}" if is_passed else decision.reason,
            bytes_sent=self.sent_bytes,
            bytes_received=self.received_bytes,
            datagrams_sent=self.sent,
            datagrams_received=self.received,
            duration_ms=max(round((now_s - self.began_s) * 1000), 0),
            outcome=outcome,
            error=self.error,
            tls=None if hello is None else self._facts(hello),
            policy=self._policy,
        )

    def _facts(self, hello: ClientHello) -> TlsFacts:
        """What the client offered, by our own reading; the worker's word on what was negotiated."""
        agrees = None if hello.sni is None or self._resolved is None else agreement(hello.sni, self._resolved)
        offers = hello.alpn if len("".join(hello.alpn)) + len(hello.alpn) <= OFFERS_LIMIT else None
        told = self.told or TlsFacts()
        client = replace(
            limited_facts(told.client or TlsClientFacts()),
            sni=hello.sni,
            ja4=hello.ja4,
            ech=hello.ech or None,
            name_agrees=agrees,
            name_certified=None,
            offers=offers,
        )
        return TlsFacts(client=client, server=None if told.server is None else limited_facts(told.server))
