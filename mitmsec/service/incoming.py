"""Connections that came in for a session's programs, as events: one when each has ended, and one if it lives long.

    hook ─ BEGAN, ACCEPTED ─► whose? while it lives ─► kept by cookie ─┬─ ENDED ──────────► event
                                                                       └─ old, or the end ► event, outcome `open`

Who accepted a connection has it: the kernel's word. Where nobody has, or not so that the hook could see it, it is put
down to who listens, and that is `inferred`: which of its heirs served it is not known.

What the gate has it tells itself, and nobody else stands between a connection and its program. So what is told here is
what happened: `bypass`, by the policy's word for incoming connections or, where that is another, by `on_failure`'s.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from typing import assert_never

import msgspec
from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Confidence, Decision, Direction, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import NOTHING_SHOWN
from mitmsec.service.owners import told
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.owner import Owner

LONG_LIVED_NS = 10_000_000_000
LIVE_LIMIT = 65536  # beyond, the oldest are forgotten: their ends are told all the same
ENDS = {
    0: "",
    errno.ECONNRESET: "reset by the peer",
    errno.EPIPE: "reset by the peer",
    errno.ETIMEDOUT: "the peer did not answer any more",
}
PASSED_BY = "the policy has another word for it, but there was no gate to carry that out"
UNREAD = Decision(
    action=Action.BYPASS, rule="on_failure", reason="a rule asks for what could not be read of the program"
)


class _Live(msgspec.Struct):
    """A connection that has not ended, as it was last told."""

    flow: str
    newest: Inbound
    owner: Owner
    is_on_record: bool = False


class Incoming:
    """Of one session. `whose` names the process of a record, `selects` says whether it is any business of ours."""

    def __init__(
        self,
        *,
        name: str,
        whose: Callable[[Inbound], Owner],
        selects: Callable[[Process], bool],
        policy: Policy,
        listens: Callable[[Inbound, Process], None] = lambda one, process: None,
    ) -> None:
        """`listens` is told of who begins to listen, where connections are led to the gate."""
        self.policy, self._listens = policy, listens
        self._session, self._whose, self._selects = name, whose, selects
        self._live: dict[int, _Live] = {}  # by cookie, the oldest first

    def take(self, news: Iterable[Inbound]) -> Iterator[Seen]:
        """The events of what has happened. Owners are asked for at once, for they may end at any moment."""
        for one in news:
            match one.kind:
                case InboundKind.LISTENS:
                    self._listens(one, told(self._whose(one)))  # read while it lives, for the gate's questions
                case InboundKind.BEGAN | InboundKind.ACCEPTED:
                    self._note(one)
                case InboundKind.ENDED:
                    yield from self._ended(one)
                case _:
                    assert_never(one.kind)

    def grown_old(self, now_ns: int) -> Iterator[Seen]:
        """Those that have lived long by now (CLOCK_MONOTONIC) and are on no record yet."""
        for live in self._live.values():
            if now_ns - live.newest.began_ns < LONG_LIVED_NS:
                break
            yield from self._still_open(live, now_ns)

    def left(self, now_ns: int) -> Iterator[Seen]:
        """The session ends, and these live on: nobody will tell of their ends."""
        for live in self._live.values():
            yield from self._still_open(live, now_ns)
        self._live.clear()

    def lost(self, count: int) -> Iterator[Seen]:
        """The kernel had `count` things more to tell than there was room for: ends may be among them."""
        if count:
            what, detail = "inbound_lost", "news of incoming connections that came faster than they were read"
            yield FaultSeen(what=what, detail=detail, failed=OnFailure.OPEN, session=self._session, count=count)

    def _note(self, one: Inbound) -> _Live | None:
        """None: it is nobody's business."""
        live = self._live.get(one.cookie)
        if live is not None and live.newest.caller == one.caller:  # who listens has accepted it: read already
            live.newest = one
            return live
        owner = self._whose(one)
        if not self._selects(owner.process):
            self._live.pop(one.cookie, None)
            return None
        if live is None:
            live = self._live[one.cookie] = _Live(f"{self._session}-in-{one.cookie:x}", one, owner)
            if len(self._live) > LIVE_LIMIT:
                del self._live[next(iter(self._live))]
        live.newest, live.owner = one, owner
        return live

    def _ended(self, one: Inbound) -> Iterator[Seen]:
        live = self._live.get(one.cookie) or self._note(one)
        self._live.pop(one.cookie, None)
        if live is not None:
            yield self._event(live, one, Outcome.COMPLETED, ENDS.get(one.error, errno.errorcode.get(one.error, "?")))

    def _still_open(self, live: _Live, now_ns: int) -> Iterator[Seen]:
        if not live.is_on_record:
            live.is_on_record = True
            yield self._event(live, replace(live.newest, at_ns=now_ns), Outcome.OPEN)

    def _event(self, live: _Live, one: Inbound, outcome: Outcome, error: str = "") -> ConnectionSeen:
        process = told(live.owner)
        if not one.is_accepted and process.confidence is not Confidence.UNKNOWN:
            process = replace(process, confidence=Confidence.INFERRED)
        decision = self._decision(process, one)
        return ConnectionSeen(
            flow=live.flow,
            process=process,
            protocol="tcp",
            direction=Direction.INBOUND,
            local=one.local,
            remote=one.remote,
            action=decision.action,
            rule=decision.rule,
            reason=decision.reason,
            bytes_sent=one.sent_bytes,
            bytes_received=one.received_bytes,
            duration_ms=max((one.at_ns - one.began_ns) // 1_000_000, 0),
            outcome=outcome,
            error=error,
            session=self._session,
            policy=self.policy.fingerprint,
        )

    def _decision(self, process: Process, one: Inbound) -> Decision:
        if not self.policy.can_judge(process, Direction.INBOUND):
            return UNREAD
        peer = Endpoint(address=one.remote.address, port=one.local.port)
        said = self.policy.at_hello(process, peer, time.time(), shown=NOTHING_SHOWN, direction=Direction.INBOUND)
        if said.action is Action.BYPASS:
            return said
        return Decision(action=Action.BYPASS, rule="on_failure", reason=PASSED_BY)
