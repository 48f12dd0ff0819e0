"""What the gate has learned from flows that could not be decrypted: to let the next ones of their kind pass.

    WorkerSaid ─┬─ the program refused our certificate ── as often as the policy says ──┐
                ├─ the origin asks for a client's certificate ── at once ──────────────┤
                │                                                                       ▼
                └─ the program took our certificate ──► what was counted is forgotten   Bypass, for as many hours as the
                                                                                        policy says, and no longer
    at_hello: decrypt ── is there a Bypass for this program, host and port? ──► bypass

A program is its file, user and container, not its pid: who pins is started again and again. One whose file is not known
for certain teaches nothing, and nothing is known of it. An alert says "I do not accept this certificate"; who closes or
resets right after the handshake may have another reason, so two of those count as one. They count as none where the
program has ever said as much as a byte under our certificate, or has another connection there that it has not left:
browsers and load generators drop what they did not use. All of it is gone with the gate, and with a new policy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Action, Confidence, Decision, LearnedBypass, Learning, Process, Refusal, Value

COUNTED_S = 3600.0  # refusals are forgotten when so long no other has followed
LEARNED_LIMIT = 512
COUNTED_LIMIT = 1024
TAKEN_LIMIT = 4096
TOLD_LIMIT = 64  # of all that is learned, in an answer
TEXT_LIMIT = 256  # characters of a path, likewise
_CERTAIN = frozenset({Confidence.KERNEL, Confidence.TABLE})
_WEIGHTS = {Refusal.ALERT: 2, Refusal.CLOSED: 1, Refusal.RESET: 1}
ASKED = "the origin asks for a client's certificate"


class Kind(NamedTuple):
    """Whose flows, and where they go."""

    program: str
    claimed: bool  # `program` is true only where the program sees it
    container: str
    user: str
    host: str
    port: int

    @classmethod
    def of(cls, process: Process, host: str, port: int) -> Kind | None:
        """None: of that program nothing can be learned."""
        program = process.exe or process.claimed_exe
        if program is None or process.confidence not in _CERTAIN:
            return None
        return cls(program, process.exe is None, process.container or "", process.user or "", host, port)


class Bypass(Value, frozen=True):
    """Flows of `kind` are let pass until then. Monotonic seconds."""

    kind: Kind
    why: str
    until_s: float
    hours: int
    is_asked: bool  # by the origin, for a certificate

    def holds(self, learning: Learning, *, is_proven: bool) -> bool:
        """Whether the policy would have it learned of a flow like this one."""
        is_allowed = learning.on_request if self.is_asked else learning.after > 0
        return is_allowed and (is_proven or not learning.needs_proof)

    def __str__(self) -> str:
        kind = self.kind
        return f"{kind.program} to {kind.host}, port {kind.port}, passes for {self.hours} h: {self.why}"


class _Count(Value, frozen=True):
    refusals: tuple[Refusal, ...]
    last_s: float

    @property
    def weight(self) -> int:
        return sum(_WEIGHTS[refusal] for refusal in self.refusals)

    @property
    def why(self) -> str:
        alerts = self.refusals.count(Refusal.ALERT)
        said = f", {alerts} of them with an alert" if alerts < len(self.refusals) else ""
        return f"it refused our certificate {len(self.refusals)} times{said}"


class Learned:
    """A bounded memory. What was learned or counted longest ago makes room."""

    def __init__(self) -> None:
        self._bypasses: OrderedDict[Kind, Bypass] = OrderedDict()
        self._counts: OrderedDict[Kind, _Count] = OrderedDict()
        self._taken: OrderedDict[Kind, None] = OrderedDict()  # who has said something under our certificate
        self._live: Counter[Kind] = Counter()  # flows that workers have

    def __len__(self) -> int:
        return len(self._bypasses)

    def find(self, kind: Kind | None, now_s: float) -> Bypass | None:
        """What lets a flow of `kind` pass."""
        bypass = self._bypasses.get(kind) if kind is not None else None
        if bypass is not None and now_s >= bypass.until_s:
            del self._bypasses[bypass.kind]
            return None
        return bypass

    def decided(self, decision: Decision, kind: Kind | None, now_s: float, *, is_proven: bool) -> Decision:
        """`decision` about a flow that shows TLS, or the bypass that was learned of its kind."""
        bypass = self.find(kind, now_s) if decision.action is Action.DECRYPT and self._bypasses else None
        if bypass is None or not bypass.holds(decision.learning, is_proven=is_proven):
            return decision
        reason = f"{decision.reason}; but that was learned not to work: {bypass.why}"
        return replace(decision, action=Action.BYPASS, reason=reason, inspect=())

    def handed(self, kind: Kind | None) -> None:
        """A worker has a flow of `kind` from now on, until `over`."""
        if kind is not None:
            self._live[kind] += 1

    def over(self, kind: Kind | None) -> None:
        """That flow has ended, and has been heard of, if anything was said of it."""
        if kind is not None and self._live[kind] > 1:
            self._live[kind] -= 1
        elif kind is not None:
            del self._live[kind]

    def heard(self, kind: Kind | None, ended: FlowEnded, learning: Learning, now_s: float) -> Bypass | None:
        """How a decrypted flow ended, before it is `over`; what follows from it for the next ones, if that is new."""
        tls = ended.tls
        if kind is None or tls is None:
            return None
        if tls.server is not None and tls.server.asks_certificate:
            return self._learn(kind, ASKED, learning, now_s, is_asked=True) if learning.on_request else None
        if ended.was_heard:
            self._takes(kind)
            return None
        refusal = tls.client.refusal if tls.client is not None else None
        if refusal is None or not learning.after or not self._may_mean_it(kind, refusal):
            return None
        return self._refused(kind, refusal, learning, now_s)

    def _takes(self, kind: Kind) -> None:
        self._counts.pop(kind, None)
        self._taken[kind] = None
        self._taken.move_to_end(kind)
        if len(self._taken) > TAKEN_LIMIT:
            self._taken.popitem(last=False)

    def _may_mean_it(self, kind: Kind, refusal: Refusal) -> bool:
        """Who ends one connection in silence, and has not left another that it began, has nothing against us."""
        return refusal is Refusal.ALERT or (kind not in self._taken and self._live[kind] <= 1)

    def _refused(self, kind: Kind, refusal: Refusal, learning: Learning, now_s: float) -> Bypass | None:
        before = self._counts.pop(kind, None)
        is_fresh = before is not None and now_s - before.last_s < COUNTED_S
        count = _Count((*(before.refusals if before is not None and is_fresh else ()), refusal), now_s)
        if count.weight >= _WEIGHTS[Refusal.ALERT] * learning.after:
            return self._learn(kind, count.why, learning, now_s)
        self._counts[kind] = count
        if len(self._counts) > COUNTED_LIMIT:
            self._counts.popitem(last=False)
        return None

    def _learn(
        self, kind: Kind, why: str, learning: Learning, now_s: float, *, is_asked: bool = False
    ) -> Bypass | None:
        if self.find(kind, now_s) is not None:
            return None  # by an earlier one of several that were under way
        bypass = Bypass(kind, why, now_s + learning.hours * 3600.0, learning.hours, is_asked)
        self._bypasses[kind] = bypass
        if len(self._bypasses) > LEARNED_LIMIT:
            self._bypasses.popitem(last=False)
        return bypass

    def forget(self) -> None:
        """Another policy: everything is tried again."""
        self._bypasses.clear()
        self._counts.clear()
        self._taken.clear()

    def told(self, now_s: float) -> Sequence[LearnedBypass]:
        """What holds now, the newest first."""
        held = [bypass for bypass in reversed(self._bypasses.values()) if now_s < bypass.until_s]
        return tuple(
            LearnedBypass(
                program=bypass.kind.program[-TEXT_LIMIT:],
                user=bypass.kind.user[:TEXT_LIMIT],
                host=bypass.kind.host,
                port=bypass.kind.port,
                why=bypass.why,
                left_s=int(bypass.until_s - now_s),
            )
            for bypass in held[:TOLD_LIMIT]
        )
