"""What mitmsec itself answers over HTTP: short, plain, and with the rule and the connection's id to ask about.

A peer that called from outside is told the status and no more.
"""

from __future__ import annotations

from msgspec.structs import replace

from mitmsec.core.block_page import block_text
from mitmsec.core.model import Decision, Direction, Value

MISDIRECTED = 421
FORBIDDEN = 403
BAD_REQUEST = 400
FIELDS_TOO_LARGE = 431
MAIL_LINE_CHARACTERS = 400  # RFC 5321 allows 512 with code and line break


class Page(Value, frozen=True):
    """A refusal: what the client is told, and the fault that stands in the record (None: something else says it)."""

    status: int
    text: str
    fault: str | None = None

    @property
    def body(self) -> bytes:
        return self.text.encode("utf-8", "replace")


def told(page: Page, direction: Direction) -> Page:
    """`page` as its reader may have it: who calls from outside is not to hear of our rules, nor of us."""
    if direction is Direction.OUTBOUND:
        return page
    return replace(page, text=page.text.partition("\n")[0] + "\n")


def misdirected(flow: str) -> Page:
    return Page(
        status=MISDIRECTED,
        text=f"421 Misdirected Request\n\nThis connection was decided for another name.\nConnection: {flow}\n",
        fault="misdirected_request",
    )


def malformed(flow: str, why: str) -> Page:
    return Page(status=BAD_REQUEST, text=f"400 Bad Request\n\n{why}.\nConnection: {flow}\n", fault="malformed_request")


def unreadable(flow: str) -> Page:
    return malformed(flow, "This is no request that HTTP allows")


def too_large(flow: str) -> Page:
    return Page(
        status=FIELDS_TOO_LARGE,
        text=f"431 Request Header Fields Too Large\n\nThe head of the request is too long.\nConnection: {flow}\n",
        fault="malformed_request",
    )


def forbidden(flow: str, decision: Decision) -> Page:
    """The rule blocks the connection as a whole."""
    return Page(status=FORBIDDEN, text=block_text(decision.rule, decision.reason, flow))


def blocked(flow: str, rule: str, reason: str, what: str = "this request") -> Page:
    """`what`: the request, or the answer to it."""
    return Page(
        status=FORBIDDEN,
        text=(
            f"403 Forbidden\n\nmitmsec blocked {what} because of what it carries.\n"
            f"Finding: {reason}\nRule: {rule}\nConnection: {flow}\n"
        ),
    )


def mail_refusal(flow: str, rule: str, reason: str, direction: Direction, *, is_final: bool) -> bytes:
    """One reply of SMTP (RFC 5321 §4.2, 3463): the message is refused for good, or cannot be looked at now."""
    code = "554 5.7.1" if is_final else "451 4.7.1"
    said = f"Blocked by mitmsec: {reason}. Rule: {rule}. Connection: {flow}"
    text = said if direction is Direction.OUTBOUND else "Message refused"
    line = "".join(letter if letter.isprintable() else "?" for letter in text[:MAIL_LINE_CHARACTERS])
    return f"{code} {line}\r\n".encode("ascii", "replace")
