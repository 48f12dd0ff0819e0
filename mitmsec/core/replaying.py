"""Another policy over flows that are over: what would change, and how often.

    PastFlow, what was made of it ── replayed ──► Replayed ── Tally.add ──► Row: from → to, count, an example

What a policy makes of a flow is the verdict of mitmsec.core.past_flow, before and after alike: so a policy that is
replayed over flows that it decided itself changes none of them.
"""

from __future__ import annotations

from collections import Counter

from mitmsec.core.model import Value
from mitmsec.core.past_flow import PastFlow, Verdict, story, unsettled, verdict
from mitmsec.core.policy import Policy
from mitmsec.core.rules import CONDITIONS

ROWS_LIMIT = 10_000  # different changes that are told apart; the rest is one row


class Answer(Value, frozen=True, order=True):
    """What is done, and by which rule."""

    action: str
    rule: str

    @classmethod
    def of(cls, found: Verdict | None) -> Answer:
        """None: nothing is known of what was done."""
        return UNKNOWN if found is None else cls(action=found.action.value, rule=found.rule)


UNKNOWN = Answer(action="", rule="")
REST = Answer(action="…", rule="others")


class Replayed(Value, frozen=True):
    """One flow under both. `unsettled`: rules that might come first, and what they ask for that is not on record."""

    before: Verdict | None
    after: Verdict
    unsettled: tuple[tuple[str, str], ...] = ()

    @property
    def changes(self) -> bool:
        """Whether another thing is done, or by another rule. Where nothing is known of before, it does."""
        return Answer.of(self.before) != Answer.of(self.after)


class Replay:
    """`policy`, ready to be asked about flows."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._asked = frozenset(
            condition for condition in CONDITIONS if any(getattr(rule, condition, ()) for rule in policy.rules)
        )

    def of(self, flow: PastFlow, before: Verdict | None) -> Replayed:
        """`before` is what was made of it; None: that is not known."""
        after = verdict(self._policy, flow)
        is_open = not self._asked.isdisjoint(flow.unknown)
        found = tuple(unsettled(story(self._policy, flow), flow)) if is_open else ()
        return Replayed(before=before, after=after, unsettled=found)


class Row(Value, frozen=True):
    """Flows of which the same became, and what becomes of them."""

    before: Answer
    after: Answer
    count: int
    example: str


class Tally:
    """Counts what it is told of; bounded, however many rules there are."""

    def __init__(self) -> None:
        self.flows = self.changed = self.unsettled = 0
        self._counts: Counter[tuple[Answer, Answer]] = Counter()
        self._examples: dict[tuple[Answer, Answer], str] = {}

    def add(self, one: Replayed, example: str) -> None:
        """`example` says which flow it is, for people."""
        self.flows += 1
        self.changed += one.changes
        self.unsettled += bool(one.unsettled)
        key = (Answer.of(one.before), Answer.of(one.after))
        if key not in self._counts and len(self._counts) >= ROWS_LIMIT:
            key = (REST, REST)
        self._counts[key] += 1
        self._examples.setdefault(key, example)

    def rows(self, *, changes: bool) -> list[Row]:
        """Those that change, or those that stay; the most frequent first."""
        rows = [
            Row(before=before, after=after, count=count, example=self._examples[before, after])
            for (before, after), count in self._counts.items()
            if (before != after or before is REST) is changes
        ]
        return sorted(rows, key=lambda row: (-row.count, row.before, row.after))
