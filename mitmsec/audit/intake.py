"""What becomes of each message of a producer: admitted as an event, kept aside, awaited, or refused.

Pure: it joins and judges, and neither reads nor writes. The log trusts a producer with its own facts only. A worker is
what an attacker gets, so it may speak of flows that its gate handed to it, and never name a process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    SecretsSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.audit.flows import Flow, Flows
from mitmsec.core.messages import Role


@dataclass(frozen=True, slots=True)
class Source:
    """A producer, as the supervisor introduced it."""

    role: Role
    session: str = ""
    worker: int = -1

    def __str__(self) -> str:
        return f"{self.role}-{self.worker}" if self.role is Role.WORKER else self.role.value


@dataclass(frozen=True, slots=True)
class Admitted:
    """An event. `id` is empty where the recorder is to give one."""

    kind: Kind
    fields: Fields
    session: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Aside:
    """True, but no event: the gate's word on a flow, or a piece for the capture file."""

    flow: Flow | None = None


@dataclass(frozen=True, slots=True)
class Awaited:
    """Speaks of a flow that no gate has told of yet; ask again once its gate has been read."""

    flow: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not this producer's to say."""

    what: str


Judgement = Admitted | Aside | Awaited | Refused


@dataclass(slots=True)
class Intake:
    """The judge. Its only state is the table of flows."""

    flows: Flows = field(default_factory=Flows)

    def judge(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        """What is to become of `seen`; `now_s` is monotonic."""
        if not isinstance(seen, PERMITTED[source.role]):
            return Refused(type(seen).__name__)
        match source.role:
            case Role.WORKER:
                return self._of_worker(source, seen)
            case Role.GATE:
                return self._of_gate(source, seen, now_s)
            case _:
                return self._of_ours(source, seen, now_s)

    def _of_worker(self, source: Source, seen: Seen) -> Judgement:
        assert isinstance(seen, RequestSeen | FindingSeen | BytesSeen | SecretsSeen | FaultSeen)
        if isinstance(seen, FaultSeen):
            seen = replace(seen, pid=None, session="")
        if seen.flow is None:
            return Admitted(*fields_of(seen), session=source.session)
        flow = self.flows.find(seen.flow)
        if flow is None:
            return Awaited(seen.flow)
        if (flow.session, flow.worker) != (source.session, source.worker):
            return Refused(f"{type(seen).__name__} of a flow that it was not handed")
        if isinstance(seen, BytesSeen):
            return Aside(flow) if seen.process is None else Refused("BytesSeen that names a process")
        if isinstance(seen, SecretsSeen):
            return Aside(flow)
        return Admitted(*fields_of(seen, flow.process, flow.host), session=source.session)

    def _of_gate(self, source: Source, seen: Seen, now_s: float) -> Judgement:
        match seen:
            case FlowHanded():
                flow = Flow(seen.flow, source.session, seen.worker, seen.process, seen.host, seen.local, seen.remote)
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
