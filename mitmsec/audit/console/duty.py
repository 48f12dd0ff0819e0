"""Who may do what in the console. One table, which every page and every order is held against.

An administrator gives out accounts and sees no more than a viewer: who gives out rights does not use them.
"""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.model import Value

NAME_LIMIT_CHARACTERS = 64


class Duty(StrEnum):
    """The role of an account."""

    ADMINISTRATOR = "administrator"
    APPROVER = "approver"
    REVIEWER = "reviewer"
    VIEWER = "viewer"


class Deed(StrEnum):
    """What may be permitted."""

    ADMINISTER = "administer"  # accounts, roles, sessions
    APPROVE = "approve"  # that somebody else sees what was redacted
    ASK = "ask"  # to see what was redacted
    EXPORT = "export"
    LOOK = "look"
    REVIEW = "review"  # take, assign, note, dismiss, escalate, reopen, sign off
    VERIFY = "verify"


_LOOKS = frozenset({Deed.LOOK, Deed.VERIFY})
_REVIEWS = _LOOKS | {Deed.REVIEW, Deed.ASK, Deed.EXPORT}
PERMITS: dict[Duty, frozenset[Deed]] = {
    Duty.VIEWER: _LOOKS,
    Duty.REVIEWER: _REVIEWS,
    Duty.APPROVER: _REVIEWS | {Deed.APPROVE},
    Duty.ADMINISTRATOR: _LOOKS | {Deed.ADMINISTER},
}


class Person(Value, frozen=True):
    """Somebody who has signed in."""

    name: str
    duty: Duty

    def may(self, deed: Deed) -> bool:
        return deed in PERMITS[self.duty]


def is_name(text: str) -> bool:
    """Whether an account may be called so: it stands in the log and in files."""
    plain = text.replace(".", "").replace("-", "").replace("_", "")
    return text.isascii() and plain.isalnum() and text[0].isalnum() and len(text) <= NAME_LIMIT_CHARACTERS
