"""What becomes of each message of a producer: admitted as an event, kept aside, awaited, or refused.

Pure: it joins and judges, and neither reads nor writes. The log trusts a producer with its own facts only. A worker is
what an attacker gets, so it may speak of flows that its gate handed to it, and never name a process; and what it says
is `held` to what such an event can be, before anything is made of it.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from mitmsec.audit.envelope import Fields, event_id, fields_of
from mitmsec.audit.event import (
    PERMITTED,
    BytesSeen,
    CertificateSeen,
    ConnectionSeen,
    FaultSeen,
    FindingSeen,
    FlowHanded,
    Kind,
    Outcome,
    PolicySeen,
    RequestSeen,
    ReviewSeen,
    SealedSeen,
    SecretsSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.audit.flows import Flow, Flows
from mitmsec.core.allowance import Allowance
from mitmsec.core.messages import Role
from mitmsec.core.mitmproxy_addon import FILES_LIMIT
from mitmsec.core.model import NOTHING_CLEAR, Clear, Value

FAULTS_PER_S, FAULTS_BURST = 10.0, 50.0  # of no flow in particular, for each worker
COUNT_LIMIT = 2**31
PEOPLE_LIMIT = 16
BYTES_LIMIT = 2**53  # integers that every JSON reader takes
STATUS_LIMIT = 999
WORD_CHARACTERS, TEXT_CHARACTERS, URL_CHARACTERS = 64, 1024, 16_384


class Source(Value, frozen=True):
    """A producer, as the supervisor introduced it."""

    role: Role
    session: str = ""
    worker: int = -1

    def __str__(self) -> str:
        return f"{self.role}-{self.worker}" if self.role is Role.WORKER else self.role.value


class Admitted(Value, frozen=True):
    """An event. `id` is empty where the recorder is to give one."""

    kind: Kind
    fields: Fields
    session: str
    id: str = ""
    keep_evidence_s: int | None = None
    """So long what it says in the clear is kept (0: for ever); None: it says nothing so."""


class Aside(Value, frozen=True):
    """True, but no event: the gate's word on a flow, or a piece for the capture file."""

    flow: Flow | None = None


class Awaited(Value, frozen=True):
    """Speaks of a flow that no gate has told of yet; ask again once its gate has been read."""

    flow: str


class Refused(Value, frozen=True):
    """Not this producer's to say."""

    what: str


def held(source: Source, seen: Seen) -> Seen:
    """`seen` within bounds: anybody's count, and a worker's texts, which end with an ellipsis where they are cut."""
    if isinstance(seen, FaultSeen) and not 1 <= seen.count <= COUNT_LIMIT:
        seen = replace(seen, count=_within(seen.count, 1, COUNT_LIMIT))
    if isinstance(seen, ReviewSeen) and source.role is Role.CONSOLE:
        return _console_held(seen)
    return _worker_held(seen) if source.role is Role.WORKER else seen


def _console_held(seen: ReviewSeen) -> ReviewSeen:
    return replace(
        seen,
        operation=_cut(seen.operation, WORD_CHARACTERS),
        item=_cut(seen.item, TEXT_CHARACTERS),
        user=_cut(seen.user, WORD_CHARACTERS),
        people=tuple(_cut(one, WORD_CHARACTERS) for one in seen.people[:PEOPLE_LIMIT]),
        keys=(),
        detail=_cut(seen.detail, 2 * TEXT_CHARACTERS),
    )


def _worker_held(seen: Seen) -> Seen:
    match seen:
        case FaultSeen():
            return replace(
                seen,
                what=_cut(seen.what, WORD_CHARACTERS),
                detail=_cut(seen.detail, TEXT_CHARACTERS),
                failed=None if seen.failed is None else _cut(seen.failed, WORD_CHARACTERS),
            )
        case RequestSeen():
            return replace(
                seen,
                method=_cut(seen.method, WORD_CHARACTERS),
                url=_cut(seen.url, URL_CHARACTERS),
                http_version=_cut(seen.http_version, WORD_CHARACTERS),
                status=None if seen.status is None else _within(seen.status, 0, STATUS_LIMIT),
                request_bytes=_within(seen.request_bytes, 0, BYTES_LIMIT),
                response_bytes=_within(seen.response_bytes, 0, BYTES_LIMIT),
                content_type=None if seen.content_type is None else _cut(seen.content_type, TEXT_CHARACTERS),
                answered_by=None if seen.answered_by is None else _cut(seen.answered_by, TEXT_CHARACTERS),
                seen_by=tuple(_cut(name, TEXT_CHARACTERS) for name in seen.seen_by[:FILES_LIMIT]),
                modified_by=tuple(_cut(name, TEXT_CHARACTERS) for name in seen.modified_by[:FILES_LIMIT]),
            )
        case FindingSeen(finding=finding):
            shorter = replace(
                finding,
                detector=_cut(finding.detector, WORD_CHARACTERS),
                summary=_cut(finding.summary, TEXT_CHARACTERS),
                evidence=_cut(finding.evidence, TEXT_CHARACTERS),
                location=_cut(finding.location, TEXT_CHARACTERS),
                clear=NOTHING_CLEAR,
            )
            item, clear = _cut(seen.item, WORD_CHARACTERS), Clear.of(seen.clear.value)
            return replace(seen, finding=shorter, item=item, clear=clear)
        case _:
            return seen


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _within(number: int, least: int, most: int) -> int:
    return min(max(number, least), most)


class Excess(Value, frozen=True):
    """Permitted, but more of it than this producer may report: to be counted."""


Judgement = Admitted | Aside | Awaited | Refused | Excess


class Intake(msgspec.Struct):
    """The judge. Its state is the table of flows, and what each worker may still report without one."""

    flows: Flows = msgspec.field(default_factory=Flows)
    _faults: dict[Source, Allowance] = msgspec.field(default_factory=dict)

    def judge(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        """What is to become of `seen`; `now_s` is monotonic."""
        if not isinstance(seen, PERMITTED[source.role]):
            return Refused(type(seen).__name__)
        match source.role:
            case Role.WORKER:
                return self._of_worker(source, seen, now_s)
            case Role.GATE:
                return self._of_gate(source, seen, now_s)
            case _:
                return self._of_ours(source, seen, now_s)

    def forget(self, session: str) -> None:
        """The session is over: nobody speaks of it any more."""
        self.flows.forget(session)
        for source in [source for source in self._faults if source.session == session]:
            del self._faults[source]

    def _of_worker(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        assert isinstance(seen, RequestSeen | FindingSeen | BytesSeen | SealedSeen | SecretsSeen | FaultSeen)
        if isinstance(seen, FaultSeen):
            seen = replace(seen, pid=None, session="")
        if seen.flow is None:
            allowance = self._faults.setdefault(source, Allowance(FAULTS_PER_S, FAULTS_BURST, now_s))
            if not allowance.spend(now_s):
                return Excess()
            return Admitted(*fields_of(seen), session=source.session)
        flow = self.flows.find(seen.flow)
        if flow is None:
            return Awaited(seen.flow)
        if not flow.may_be_of(source.session, source.worker):
            return Refused(f"{type(seen).__name__} of a flow that it was not handed")
        if isinstance(seen, BytesSeen):
            return Aside(flow) if seen.process is None else Refused("BytesSeen that names a process")
        if isinstance(seen, SealedSeen | SecretsSeen):
            return Aside(flow)
        kind, fields = fields_of(seen, flow.process, flow.host, flow.direction)
        if not isinstance(seen, FindingSeen) or seen.clear == NOTHING_CLEAR:
            return Admitted(kind, fields, session=source.session)
        if flow.keep_evidence_s is None:
            return Refused("FindingSeen with evidence that its policy does not keep")
        return Admitted(kind, fields, session=source.session, keep_evidence_s=flow.keep_evidence_s)

    def _of_gate(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        match seen:
            case FlowHanded():
                ends = (seen.local, seen.remote, seen.direction)
                kept_s = seen.keep_evidence_s
                flow = Flow(seen.flow, source.session, seen.worker, seen.process, seen.host, *ends, kept_s)
                return Aside(flow) if self.flows.handed(flow) else Refused("FlowHanded of another session's flow")
            case BytesSeen():
                return Aside()
            case ConnectionSeen() if self._is_foreign(source, seen.flow):
                return Refused("ConnectionSeen of another session's flow")
            case _:
                return self._of_ours(source, seen, now_s)

    def _is_foreign(self, source: Source, flow: str) -> bool:
        known = self.flows.find(flow)
        return known is not None and known.session != source.session

    def _of_ours(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        session, number = source.session, ""
        match seen:
            case ConnectionSeen():
                number, session = event_id(seen), session or seen.session
                if seen.outcome is not Outcome.OPEN:
                    self.flows.ended(seen.flow, now_s)
            case CertificateSeen():
                flow = self.flows.find(seen.flow)
                session = "" if flow is None else flow.session
            case ServiceSeen() | PolicySeen() | FaultSeen():
                session = session or seen.session
        return Admitted(*fields_of(seen), session=session, id=number)
