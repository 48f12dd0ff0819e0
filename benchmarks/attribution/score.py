"""What mitmsec recorded, held against the truth. Pure.

A claim is right only if pid *and* executable are those of the process that called. It is wrong if anything it says
contradicts the truth: another pid, another executable, another start. What says less than all of it, and nothing false,
is unknown, whatever confidence it gives itself; what isn't there is missing, or outside the backend's reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from benchmarks.attribution.labels import Label, Sighting
from benchmarks.attribution.plan import KINDS, Course, Pattern, number_of

START_SLACK_S = 0.05  # a clock tick on either side, and what two readings of "boot, in Unix time" differ by
RIGHT_SHARE = 0.999
EXAMPLES = 5

Event = Mapping[str, Any]


class Verdict(StrEnum):
    """What a flow's record is worth."""

    MISSING = "missing"  # no event, although the backend claims to see such flows
    NOT_RECORDED = "not recorded"  # no event, and the backend doesn't claim to
    RIGHT = "right"
    UNKNOWN = "unknown"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Judged:
    """One flow: its truth, its verdict, the confidence that the event gave itself, and what contradicts."""

    label: Label
    verdict: Verdict
    confidence: str | None = None
    contradiction: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """All flows judged, and those of which the origin tells something else than the plan."""

    judged: tuple[Judged, ...]
    counts: Counter[tuple[str, Verdict, str | None]]
    lost: frozenset[int] = frozenset()
    """Flows that nobody at the far end saw. No attribution is asked of them."""
    crossed: frozenset[int] = frozenset()
    """Flows whose far end saw the first bytes of another flow: a connection led astray."""
    unmade: int = 0
    """Flows of the plan that nobody signed for, because the pid wanted was taken or the caller failed."""

    @property
    def right_share(self) -> float:
        """Of the flows within reach; 0 where there are none."""
        within = [each for each in self.judged if each.verdict is not Verdict.NOT_RECORDED]
        return sum(each.verdict is Verdict.RIGHT for each in within) / len(within) if within else 0.0

    def wrong(self, confidence: str | None = None) -> list[Judged]:
        """The false claims; only those with this confidence, where one is given."""
        false = [each for each in self.judged if each.verdict is Verdict.WRONG]
        return [each for each in false if confidence in (None, each.confidence)]

    @property
    def missing(self) -> list[Judged]:
        """Flows within reach that no event tells of."""
        return [each for each in self.judged if each.verdict is Verdict.MISSING]

    @property
    def faults(self) -> list[str]:
        """Why the score fails; empty where it holds."""
        said = []
        if self.wrong("kernel"):
            said.append(f"{len(self.wrong('kernel'))} wrong at confidence kernel")
        if self.crossed:
            said.append(f"{len(self.crossed)} led astray")
        if self.missing:
            said.append(f"{len(self.missing)} missing")
        if self.right_share < RIGHT_SHARE:
            said.append(f"{100 * self.right_share:.2f} % right, not {100 * RIGHT_SHARE:g} %")
        return said


def score(
    labels: Iterable[Label],
    sightings: Iterable[Sighting],
    events: Iterable[Event],
    reach: Collection[Course],
    planned: int | None = None,
) -> Score:
    """Every label judged by the events of its flow.

    `reach` is what the backend claims to see, `planned` how many flows there should be labels of.
    """
    claimed = claims(events)
    seen = {sighting.flow: sighting for sighting in sightings}
    made = {label.flow: label for label in labels}
    judged = tuple(
        _judge(label, claimed.get(flow, []), _course(label) in reach) for flow, label in made.items() if flow in seen
    )
    counts = Counter((each.label.pattern, each.verdict, each.confidence) for each in judged)
    crossed = frozenset(flow for flow, at in seen.items() if at.token not in (None, flow))
    unmade = 0 if planned is None else planned - len(made)
    return Score(judged, counts, frozenset(made.keys() - seen.keys()), crossed, unmade)


def claims(events: Iterable[Event]) -> dict[int, list[Event]]:
    """Connection events by flow; of an event that was told again (first `open`, then ended) the last one counts."""
    latest: dict[str, Event] = {}
    for event in events:
        if event.get("kind") == "connection":
            latest[event["id"]] = event
    by_flow: dict[int, list[Event]] = {}
    for event in latest.values():
        number = number_of(event["remote"]["address"])
        if number is not None:
            by_flow.setdefault(number, []).append(event)
    return by_flow


def judge(label: Label, process: Mapping[str, Any]) -> tuple[Verdict, str]:
    """What the claim is worth, and the first thing in it that is false."""
    pid, exe, started = process.get("pid"), process.get("exe"), process.get("started")
    if pid and pid != label.pid:  # pid 0 is nobody's, and no claim
        return Verdict.WRONG, f"pid {pid}, not {label.pid}"
    if started is not None and abs(datetime.fromisoformat(started).timestamp() - label.started_s) > START_SLACK_S:
        return Verdict.WRONG, f"started {started}, not {label.started_s:.2f}"
    if exe is not None and exe != label.exe:
        return Verdict.WRONG, f"exe {exe}, not {label.exe}"
    return (Verdict.RIGHT, "") if pid and exe else (Verdict.UNKNOWN, "")


_SEVERITY = (Verdict.RIGHT, Verdict.UNKNOWN, Verdict.WRONG)


def _judge(label: Label, told: Sequence[Event], within: bool) -> Judged:
    """Where several events tell of one flow the worst of them counts."""
    if not told:
        return Judged(label, Verdict.MISSING if within else Verdict.NOT_RECORDED)
    judged = [(*judge(label, event["process"]), event["process"].get("confidence")) for event in told]
    verdict, contradiction, confidence = max(judged, key=lambda each: _SEVERITY.index(each[0]))
    return Judged(label, verdict, confidence, contradiction)


def _course(label: Label) -> Course:
    return KINDS[Pattern(label.pattern)].course


# --- the table --------------------------------------------------------------------------------------------------------
_COLUMNS = (Verdict.RIGHT, Verdict.UNKNOWN, Verdict.WRONG, Verdict.MISSING, Verdict.NOT_RECORDED)


def table(scored: Score, *, examples: int = EXAMPLES) -> str:
    """Per pattern: how many flows got which verdict, split by the confidence that the events gave themselves.

    Below it what else is to be said, with so many examples of false claims, which name paths of this machine.
    """
    patterns = sorted({pattern for pattern, _, _ in scored.counts})
    head = ["pattern", "flows", *(str(column) for column in _COLUMNS)]
    body = [[name, *_cells(scored.counts, {name})] for name in patterns]
    body.append(["all", *_cells(scored.counts, set(patterns))])
    widths = [max(len(row[at]) for row in [head, *body]) for at in range(len(head))]
    lines = [_aligned(row, widths) for row in [head, *body]]
    lines.insert(1, "─" * len(lines[0]))
    return "\n".join([*lines, "", *_remarks(scored, examples)])


def _cells(counts: Counter[tuple[str, Verdict, str | None]], patterns: set[str]) -> list[str]:
    chosen = {key: number for key, number in counts.items() if key[0] in patterns}
    cells = [str(sum(chosen.values()))]
    for column in _COLUMNS:
        by_confidence: Counter[str | None] = Counter()
        for (_, verdict, confidence), number in chosen.items():
            if verdict is column:
                by_confidence[confidence] += number
        told = ", ".join(_counted(number, sure) for sure, number in sorted(by_confidence.items(), key=str))
        cells.append(told or "–")
    return cells


def _counted(number: int, confidence: str | None) -> str:
    return f"{number}" if confidence is None else f"{number} {confidence}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = widths
    return row[0].ljust(first) + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], rest, strict=True))


def _remarks(scored: Score, examples: int) -> Iterable[str]:
    yield f"{100 * scored.right_share:.3f} % right of the flows within reach"
    if scored.lost:
        yield f"{len(scored.lost)} never reached the far end, the first: {sorted(scored.lost)[:EXAMPLES]}"
    if scored.unmade:
        yield f"{scored.unmade} of the plan were not made: a pid to be used again was taken, or the caller failed"
    for each in scored.wrong()[:examples]:
        yield f"wrong ({each.confidence}): flow {each.label.flow}, {each.label.pattern}: {each.contradiction}"
    yield "holds" if not scored.faults else "fails: " + "; ".join(scored.faults)


def told(scored: Score) -> dict[str, object]:
    """The score for JSON."""
    counted = [
        {"pattern": pattern, "verdict": verdict, "confidence": confidence, "flows": flows}
        for (pattern, verdict, confidence), flows in sorted(scored.counts.items(), key=str)
    ]
    return {
        "right_share": scored.right_share,
        "faults": scored.faults,
        "lost": sorted(scored.lost),
        "unmade": scored.unmade,
        "crossed": sorted(scored.crossed),
        "counts": counted,
        "wrong": [asdict(each) for each in scored.wrong()],
    }
