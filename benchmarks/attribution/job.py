"""What the processes of one corpus are told: where to call, what to write, which units are theirs. One JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.attribution.plan import Course, Pattern, Unit, plan

ORIGIN_PORT = 7007
SERVER_PORTS = {
    Pattern.INETD: 7101,
    Pattern.PREFORKED: 7102,
    Pattern.SERVER: 7103,
    Pattern.UDP_SERVER: 7104,
}
_INBOUND = (Course.INBOUND_TCP, Course.INBOUND_UDP)


@dataclass(frozen=True, slots=True)
class Job:
    """The plan by its parameters, so that every process makes the same one, and this machine's places."""

    count: int
    seed: int
    patterns: tuple[str, ...]
    folder: str
    """For `labels`, `sightings` and sockets."""
    server_v4: str
    server_v6: str
    bash: str
    curl: str
    partner: str
    """A copy of the interpreter under another name: another program, as far as the kernel knows."""
    in_flight: int = 8

    @property
    def labels(self) -> Path:
        """Where callers write who they are."""
        return Path(self.folder, "labels.jsonl")

    @property
    def sightings(self) -> Path:
        """Where far ends write what they see."""
        return Path(self.folder, "sightings.jsonl")

    @property
    def door(self) -> Path:
        """The partner's Unix socket."""
        return Path(self.folder, "partner.socket")

    def units(self) -> tuple[Unit, ...]:
        """The plan."""
        return plan(self.count, self.seed, [Pattern(name) for name in self.patterns])

    def outbound(self) -> list[Unit]:
        """Units whose flows the run itself opens."""
        return [unit for unit in self.units() if unit[0].course not in _INBOUND]

    def inbound(self, pattern: Pattern | None = None) -> list[Unit]:
        """Units whose flows are opened from outside, perhaps of one pattern."""
        units = [unit for unit in self.units() if unit[0].course in _INBOUND]
        return [unit for unit in units if pattern in (None, unit[0].pattern)]

    def write(self, path: Path) -> None:
        """Keep it for `read`."""
        path.write_text(json.dumps(asdict(self)))


def read(path: Path) -> Job:
    """The job that `Job.write` left."""
    fields = json.loads(path.read_text())
    return Job(**{**fields, "patterns": tuple(fields["patterns"])})
