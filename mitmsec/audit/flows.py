"""Who may speak about which flow, and whose it is: what the gates told, kept for as long as it can be needed.

    gate:    FlowHanded ──────────────► live ── ConnectionSeen ──► ended ── LINGER_S or too many ──► forgotten
    worker:  RequestSeen … may come before the first (its channel is another) and after the second
    gate:    FlowHanded once more, for a dialogue that goes on under TLS, perhaps to another worker

The table is bounded: the flow that ended first goes first, then the one that was handed over first.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec.structs import replace

from mitmsec.core.model import Direction, Endpoint, Process, Value

FLOWS_LIMIT = 65_536
LINGER_S = 60.0  # for how long a flow that has ended may still be spoken about


class Flow(Value, frozen=True):
    """A flow as its gate told it."""

    id: str
    session: str
    worker: int
    process: Process
    host: str | None
    local: Endpoint | None = None
    remote: Endpoint | None = None
    direction: Direction = Direction.OUTBOUND
    keep_evidence_s: int | None = None
    """Evidence may be kept, so long (0: for ever); None: the policy wants none."""
    before: frozenset[int] = frozenset()
    """Workers that had it: what they have said of it may come late."""

    def may_be_of(self, session: str, worker: int) -> bool:
        """Whether this worker may speak of it."""
        return self.session == session and (self.worker == worker or worker in self.before)


class Flows:
    """The table. Times are monotonic seconds, given by the caller."""

    def __init__(self, limit: int = FLOWS_LIMIT, linger_s: float = LINGER_S) -> None:
        self._limit, self._linger_s = limit, linger_s
        self._live: OrderedDict[str, Flow] = OrderedDict()
        self._ended: OrderedDict[str, tuple[float, Flow]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    def find(self, flow: str) -> Flow | None:
        """The flow of this id, live or lately ended."""
        live = self._live.get(flow)
        if live is not None:
            return live
        ended = self._ended.get(flow)
        return None if ended is None else ended[1]

    def handed(self, flow: Flow) -> bool:
        """Take the gate's word. False for a flow that another session has already: one gate speaks for one session."""
        known = self.find(flow.id)
        if known is not None and known.session != flow.session:
            return False
        if known is not None and known.worker != flow.worker:
            flow = replace(flow, before=known.before | {known.worker})
        self._ended.pop(flow.id, None)
        self._live[flow.id] = flow
        if len(self) > self._limit:
            (self._ended or self._live).popitem(last=False)
        return True

    def ended(self, flow: str, now_s: float) -> None:
        """The gate has told the flow's end."""
        live = self._live.pop(flow, None)
        if live is not None:
            self._ended[flow] = (now_s, live)
        self.expire(now_s)

    def expire(self, now_s: float) -> None:
        """Forget what ended too long ago."""
        while self._ended:
            flow, (ended_s, _) = next(iter(self._ended.items()))
            if ended_s + self._linger_s > now_s:
                return
            del self._ended[flow]

    def forget(self, session: str) -> None:
        """The session is over: nobody speaks about its flows any more."""
        for flow in [flow.id for flow in self._live.values() if flow.session == session]:
            del self._live[flow]
        for flow in [key for key, (_, ended) in self._ended.items() if ended.session == session]:
            del self._ended[flow]
