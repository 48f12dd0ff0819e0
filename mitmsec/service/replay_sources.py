"""Where `policy replay` takes flows from: the log, or a capture. Each with what was made of it before.

What was made of a flow of the log is what the policy of that time makes of it, so that nothing but the policy differs;
where that version is not kept, it is what is on record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mitmsec.audit.criteria import Filter
from mitmsec.audit.envelope import is_open
from mitmsec.audit.past_flows import NoFlow, PastConnection, past_connection
from mitmsec.audit.review import Review
from mitmsec.core.model import Direction, Process
from mitmsec.core.past_flow import PastFlow, Verdict, verdict
from mitmsec.core.policy import Policy
from mitmsec.service.captured_flows import captured_flows, recorded
from mitmsec.service.policy_versions import NoVersion, PolicyVersions

VERSIONS_HELD = 8  # of policies, which may be large

type Told = Callable[[int], None]


class Subject(NamedTuple):
    """A flow, what was made of it, and how to find it again."""

    flow: PastFlow
    before: Verdict | None
    id: str
    began: datetime
    host: str | None

    @property
    def example(self) -> str:
        """Which flow it is, in a few words."""
        process, remote = self.flow.process, self.flow.asked
        program = process.exe or process.name or "a program that is not known"
        if self.flow.direction is Direction.INBOUND:
            return f"{program}, port {remote.port}, from {remote.address}"
        return f"{program} to {self.host or remote.address}, port {remote.port}"


class LogFlows:
    """The connections of a log that have ended. Raises PermissionError where the policies are not to be read."""

    def __init__(self, log: Review, versions: PolicyVersions, wanted: Filter) -> None:
        self._log, self._versions, self._wanted = log, versions, wanted
        self._held: dict[str, Policy | None] = {}
        self.left_out: Counter[str] = Counter()
        """Why some events tell of no flow."""
        self.by_record = 0
        """Flows whose policy is not kept."""

    def flows(self, told: Told) -> Iterator[Subject]:
        """`told` is told the number of each event."""
        for event in self._log.events(self._wanted):
            told(int(event["seq"]))
            if is_open(str(event["id"])):
                continue  # its end is a later event, or still to come
            try:
                past = past_connection(event)
            except NoFlow as error:
                self.left_out[str(error)] += 1
                continue
            host = event["remote"].get("host")
            yield Subject(past.flow, self._before(past), str(event["id"]), past.began, host)

    def _before(self, past: PastConnection) -> Verdict:
        policy = self._policy(past.policy)
        if policy is None:
            self.by_record += 1
            return past.recorded
        return verdict(policy, past.flow)

    def _policy(self, fingerprint: str) -> Policy | None:
        if fingerprint not in self._held:
            if len(self._held) >= VERSIONS_HELD:
                del self._held[next(iter(self._held))]
            try:
                self._held[fingerprint] = self._versions.read(fingerprint)
            except NoVersion:
                self._held[fingerprint] = None
        return self._held[fingerprint]


class CapturedFlows:
    """The flows of a pcapng file. Raises OSError, NotPcapng, CaptureUnreadable after those that could be read."""

    def __init__(self, path: Path, program: Process | None) -> None:
        self._path, self._program = path, program
        self.left_out: Counter[str] = Counter()
        self.by_record = 0

    def flows(self, told: Told) -> Iterator[Subject]:
        """`told` is told how many bytes have been read."""
        for flow, past in captured_flows(self._path, self._program, told):
            began = datetime.fromtimestamp(flow.first_ns / 10**9, UTC)
            number = flow.said.get("flow", f"{flow.local} {flow.remote}")
            yield Subject(past, recorded(flow), number, began, past.name or flow.host)
