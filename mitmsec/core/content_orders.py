"""What is ordered of the content beside the log, and the answers: over the control socket, then to the recorder.

    client ── order ──► supervisor ── the same, with `by` and a number ──► recorder
           ◄── answer ──           ◄── answer ──

Who orders something (`by`) is who the kernel says the client is; root's word on it is believed. What is shown in the
clear goes from the recorder into the descriptor that came with `Unmask`, and is in no message.
"""

from __future__ import annotations

from mitmsec.core.messages import Message
from mitmsec.core.unmasking import Person, Unmasking


class ContentOrder(Message, frozen=True):
    """Base of the orders."""

    number: int = 0  # the supervisor's
    by: Person | None = None


class EraseContent(ContentOrder, frozen=True, kw_only=True):
    """For good: all that meets every one of these, of which there is one at least. On record before it is done."""

    user: str = ""  # whose programs' connections: a name, or a number
    connection: str = ""
    event: str = ""  # its id
    before_s: int | None = None  # Unix seconds
    reason: str = ""


class LimitContent(ContentOrder, frozen=True, kw_only=True):
    """Nothing that lies there now is kept for longer than this since it came."""

    evidence_s: int


class RequestUnmasking(ContentOrder, frozen=True, kw_only=True):
    event: str  # its id
    reason: str


class ApproveUnmasking(ContentOrder, frozen=True, kw_only=True):
    request: str


class Unmask(ContentOrder, frozen=True, kw_only=True):
    """fds: what the clear value is written into, a pipe's end. By whom asked for it, once another one has agreed."""

    event: str


class UnmaskingsQuestion(ContentOrder, frozen=True, kw_only=True):
    """Who has asked to see what?"""


class EvidenceQuestion(ContentOrder, frozen=True, kw_only=True):
    """Does anything lie beside this event, and who has asked to see it?"""

    event: str  # its id


class ContentAnswer(Message, frozen=True):
    """Base of the answers."""

    number: int = 0


class ContentErased(ContentAnswer, frozen=True, kw_only=True):
    count: int


class ContentLimited(ContentAnswer, frozen=True, kw_only=True):
    """It holds; what is too old now is being erased."""


class UnmaskingRequested(ContentAnswer, frozen=True, kw_only=True):
    request: str


class UnmaskingApproved(ContentAnswer, frozen=True, kw_only=True):
    asked_by: Person
    event: str


class Unmasked(ContentAnswer, frozen=True, kw_only=True):
    """That it is shown is on disk; what came with `Unmask` has the value, and its end."""

    approved_by: Person


class Unmaskings(ContentAnswer, frozen=True, kw_only=True):
    """The newest first."""

    requests: tuple[Unmasking, ...]


class EvidenceAnswer(ContentAnswer, frozen=True, kw_only=True):
    """Times are Unix seconds. None of them: nothing was ever kept there."""

    kept_s: int | None = None
    expires_s: int | None = None  # None: it stays until somebody erases it
    erased_s: int | None = None  # None: it is there
    requests: tuple[Unmasking, ...] = ()  # the newest first


class ContentRefused(ContentAnswer, frozen=True, kw_only=True):
    """Nothing was done, but what `error` says; `status` is the exit status that says whose fault it is."""

    error: str
    remedy: str
    status: int


ORDERS: tuple[type[ContentOrder], ...] = (
    EraseContent,
    LimitContent,
    RequestUnmasking,
    ApproveUnmasking,
    Unmask,
    UnmaskingsQuestion,
    EvidenceQuestion,
)
FROM_READERS: tuple[type[ContentOrder], ...] = (
    RequestUnmasking,
    ApproveUnmasking,
    Unmask,
    UnmaskingsQuestion,
    EvidenceQuestion,
)
"""What the group that may read the log may order."""
ANSWERS: tuple[type[ContentAnswer], ...] = (
    ContentErased,
    ContentLimited,
    UnmaskingRequested,
    UnmaskingApproved,
    Unmasked,
    Unmaskings,
    EvidenceAnswer,
    ContentRefused,
)
