"""The stage of plays about one flow: who plays in them, and how far a flow has come when they begin."""

from __future__ import annotations

from typing import Any

from hellos import alpn, hello, server_name
from playbook import Playbook

from mitmsec.audit.event import ConnectionSeen, Outcome
from mitmsec.core.dns_offers import Offers
from mitmsec.core.model import Action, Confidence, Endpoint, OnFailure, Process, UnprovenName, Upstream
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.gate.flow import Flow
from mitmsec.gate.learned import Learned
from mitmsec.gate.names import Names
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    Dial,
    Dialled,
    FirstBytes,
    Hand,
    Mint,
    Origin,
    OwnerKnown,
    Peek,
    Record,
    Relay,
    SetDeadline,
    Staff,
    Staffed,
    WatchClient,
    WatchServer,
)
from mitmsec.gate.terms import Terms

CLIENT, GATE = Endpoint(address="127.0.0.1", port=40000), Endpoint(address="127.0.0.1", port=8000)
REMOTE, OTHER = Endpoint(address="192.0.2.1", port=443), Endpoint(address="192.0.2.2", port=443)
ORIGIN = Origin(remote=REMOTE, pid=8, uid=1000, comm="curl")
CURL = Process(pid=8, exe="/usr/bin/curl", name="curl", confidence=Confidence.KERNEL)
UNREAD = Process(pid=8, name="curl", user="joe", confidence=Confidence.INFERRED)
NEVER = SetDeadline(None)
TLS = hello(server_name(b"a.test"), alpn(b"h2"))
HTTP = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
SSH = b"SSH-2.0-x\r\n"
FLAWED = b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff"  # a hello of 16 MiB
HALF = TLS[:50]


class Colleagues:
    """Health, as the test wants it."""

    off = False
    recording = True
    signing = True


class Stage:
    """A flow on which a play is played, under a policy whose one rule is about the host a.test, or none, or `more`."""

    def __init__(
        self,
        action: Action = Action.DECRYPT,
        *,
        host: Action | None = None,
        on_failure: OnFailure = OnFailure.CLOSED,
        capture: bool = True,
        inspect: tuple[str, ...] = (),
        application: bool = False,
        upstream: Upstream = Upstream.MIRROR,
        unproven_name: UnprovenName = UnprovenName.ALLOW,
        learned: Learned | None = None,
        more: tuple[Rule, ...] = (),
        probes: bool = False,
        offers: Offers = Offers(),  # noqa: B008 -- frozen
        decrypts_quic: bool = False,
    ) -> None:
        rules = (Rule(name="host", host=("a.test",), action=host, reason="its name"),) if host else ()
        applications = (Application(name="curl", path=("/usr/bin/curl",)),) if application else ()
        if application:
            rules = (*rules, Rule(name="app", application=("curl",), action=Action.BLOCK))
        rules = (*rules, *more)
        self.names, self.health = Names(), Colleagues()
        self.terms = Terms(
            on_failure=on_failure, capture=capture, probes=probes, offers=offers, decrypts_quic=decrypts_quic
        )
        self.flow = Flow(
            "f",
            self.terms,
            Policy(
                action=action,
                on_failure=on_failure,
                rules=rules,
                inspect=inspect,
                applications=applications,
                upstream=upstream,
                unproven_name=unproven_name,
            ),
            self.names,
            self.health,
            learned,
        )
        self.play = Playbook(self.flow.told)

    def owned(self, process: Process = CURL) -> Playbook:
        """Up to the moment where the owner is known; what follows from that is due."""
        self.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(self.terms.owner_deadline_s) << Ask(ORIGIN)
        return self.play >> OwnerKnown(process)

    def waiting(self) -> Playbook:
        """Nothing decided yet: the first bytes are awaited."""
        return self.owned() << SetDeadline(0.3) << Peek(1)

    def dialling(self) -> Playbook:
        """Decided without a name: dialled, and the first bytes are awaited."""
        return self.owned() << NEVER << Dial((REMOTE,)) << Peek(1)

    def connected(self) -> Playbook:
        return self.dialling() >> Dialled(REMOTE) << WatchServer()

    def relayed(self, tee: bool = False) -> Playbook:
        return self.connected() >> FirstBytes(TLS) << NEVER << Relay(tee)

    def handed(self, data: bytes = TLS) -> Playbook:
        self.connected() >> FirstBytes(data) << NEVER << Staff()
        self.play >> Staffed(3) << NEVER << Record
        if data is TLS:
            self.play << Mint("a.test")
        self.play << Hand
        self.order = self.play.last.order
        return self.play << WatchClient()


def ended(play: Playbook, answer: Any, outcome: Outcome, **facts: Any) -> ConnectionSeen:
    """The play ends with `answer` and this record."""
    play << NEVER << answer << Record
    play.done()
    seen = play.last.seen
    assert isinstance(seen, ConnectionSeen)
    assert seen.outcome is outcome
    for name, value in facts.items():
        assert getattr(seen, name) == value, name
    return seen
