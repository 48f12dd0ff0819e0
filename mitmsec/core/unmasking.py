"""When evidence may be shown in the clear: one person asks, another one agrees, and then the first sees it, once.

asked ── by another person, within OPEN_S ──► approved ── by who asked, within OPEN_S ──► shown
  │                                             │
  └─ too late, or nobody else ──► no            └─ too late, somebody else, shown before ──► no
"""

from __future__ import annotations

from mitmsec.core.model import Value

OPEN_S = 15 * 60
REASON_LIMIT_CHARACTERS = 1024


class Person(Value, frozen=True):
    """Who acts: an account of this machine, or (`uid` None) of the console."""

    name: str
    uid: int | None = None

    def may_be(self, other: Person) -> bool:
        """Whether both may be one person: one name, whatever the case, or one number."""
        is_one_account = self.uid is not None and self.uid == other.uid
        return is_one_account or self.name.casefold() == other.name.casefold()

    def __str__(self) -> str:
        return self.name if self.uid is None else f"{self.name} (uid {self.uid})"


class Unmasking(Value, frozen=True):
    """A request to see what lies beside an event, and what has become of it. Times are Unix seconds."""

    id: str
    event: str
    reason: str
    by: Person
    at_s: int
    approved_by: Person | None = None
    approved_s: int | None = None
    shown_s: int | None = None


def why_not_approved(one: Unmasking, by: Person, now_s: int) -> str:
    """Why `by` may not agree to it; empty: they may."""
    if by.may_be(one.by):
        return f"{one.by} has asked for it: another person has to agree"
    if one.approved_by is not None:
        return f"{one.approved_by} has agreed to it already"
    return "" if _is_open(one.at_s, now_s) else f"it was asked for more than {OPEN_S // 60} minutes ago"


def why_not_shown(one: Unmasking, by: Person, now_s: int) -> str:
    """Why `by` may not see it; empty: they may, once."""
    if by != one.by:
        return f"{one.by} has asked for it: nobody else is shown it"
    if one.approved_by is None or one.approved_s is None:
        return "nobody has agreed to it yet"
    if one.approved_by.may_be(by):
        return "who agreed is who asked"
    if one.shown_s is not None:
        return "it has been shown once"
    return "" if _is_open(one.approved_s, now_s) else f"it was agreed to more than {OPEN_S // 60} minutes ago"


def _is_open(since_s: int, now_s: int) -> bool:
    """A clock that was put back opens nothing."""
    return 0 <= now_s - since_s <= OPEN_S
