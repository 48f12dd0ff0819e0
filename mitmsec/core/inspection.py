"""The seam between traffic and inspectors: plain values, no engine in sight.

An `Inspector` is made once a worker and opens one `Inspection` for each part of a message. The engine feeds decoded
content in order, in slices of any size; a detector must give the same findings whatever the slices are.

    engine ── Part ──► Inspector.open ──► Inspection.feed(slice)* ──► Inspection.close()
                                              │ Finding*                  │ Finding*
                                              ▼                           ▼
                                    the policy's `on_finding`: alert | redact | block

What asks somebody else (a socket, another process) is an `AwaitedInspector` instead: the same, with `async` methods,
its own limits, and `begin` for `open`. While it thinks, the engine reads no more from whoever sends that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from mitmsec.core.model import Finding, Value

ASKS_SERVER = frozenset({"icap", "malware"})
"""Inspectors that ask a server: their only word says which, the policy's `socket`."""
SCANS = "yara"
"""The inspector whose words are its files of rules, and that has a process of its own do its work."""


def server_address(word: str) -> str:
    """`127.0.0.1:1344` of `icap://127.0.0.1:1344/scan`; what is no URI is an address already."""
    return word.removeprefix("icap://").partition("/")[0] if word.startswith("icap://") else word


class PartKind(StrEnum):
    """What a run of content is."""

    BODY = "body"
    HEADERS = "headers"  # of a head, or the trailers after a body
    STREAM = "stream"  # plaintext that is not HTTP; of a WebSocket each message is a part
    URL = "url"


class Part(Value, frozen=True):
    """One run of content of one message, and where it belongs."""

    flow: str  # the connection's id
    kind: PartKind
    sent: bool  # True: from the program to the origin
    host: str
    method: str = ""
    url: str = ""
    content_type: str = ""
    name: str = ""  # of a content among several in one body: a file's, a field's, "message 3"
    file_name: str = ""
    """What it calls itself, where that is known. It is never a path to write to."""
    is_endless: bool = False
    """No `close` ever tells that it is complete: its end is that of a connection."""
    path: str = ""
    """Where it lies in the archive or document that is the part: `a.zip!letter.txt`, printable."""


class Unread(Value, frozen=True):
    """Some of a part could not be looked at, which is no finding: the policy's `on_failure` decides.

    `why` and `location` hold no content: they are recorded.
    """

    why: str
    location: str


class Inspection(Protocol):
    """One part being read. Not thread-safe; each call is bounded in time and memory."""

    def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """Findings that `data` completes, each told once."""

    def close(self) -> Sequence[Finding | Unread]:
        """Findings that only the end of the part proves."""


class Inspector(Protocol):
    """One feature, one file, one class. `name` is the word that stands in a policy's `inspect`."""

    name: str

    def open(self, part: Part) -> Inspection | None:
        """An inspection of `part`, or None where this inspector has no business."""


class Unpacker(Protocol):
    """An inspector that finds nothing itself: it has `others`, those of the same rule, look at what lies in a part."""

    name: str

    def open_within(self, part: Part, others: Sequence[Inspector]) -> Inspection | None:
        """As Inspector.open. `others` may have unpackers among them, and this one, for what lies deeper."""


def place(part: Part, offset: int | None = None) -> str:
    """`request.body+1032`, `request.body!a.zip!letter.txt+26`.

    A URL and headers are short and may be assembled: no offset is told for them.
    """
    where = f"{'request' if part.sent else 'response'}.{part.kind.value}"
    where += f"!{part.path}" if part.path else ""
    return where if offset is None or part.kind in (PartKind.URL, PartKind.HEADERS) else f"{where}+{offset}"


class AwaitedInspection(Protocol):
    """One part being read by somebody who has to be waited for. One call at a time, in order; never after `abandon`.

    It may have a `within`, an `Inspector`: where unpackers are in the same rule, that one is shown what they unpack,
    always before the call about the bytes that it came from. It must not find out by computing, but keep.

    What is raised, and what takes longer than the inspector's `limit_s`, ends the inspection: the policy's
    `on_failure` says what becomes of the part, and the failure is recorded (its type alone).
    """

    async def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """Findings that `data` completes, each told once. `data` is never empty, and mostly at most 64 KiB."""

    async def close(self) -> Sequence[Finding | Unread]:
        """Findings that only the end of the part proves. The last call."""

    def abandon(self) -> None:
        """Instead of `close`: the part broke off, or the inspection failed. Let go of sockets and processes, at once.

        A call that still goes on is cancelled as well. May be called twice; what it raises is nobody's business.
        """


@runtime_checkable
class AwaitedInspector(Protocol):
    """As `Inspector`, for what is awaited: `begin` instead of `open`, and limits that it declares.

    It is asked about bodies and streams (PartKind.BODY and STREAM) alone: heads and URLs wait for nobody.
    """

    name: str
    limit_s: float  # seconds on the clock that one part may take it in all calls together
    limit_bytes: int  # decoded content of one part; of a larger one the inspection fails, as if it had raised

    def begin(self, part: Part) -> AwaitedInspection | None:
        """An inspection of `part`, or None where this inspector has no business. Connect in the first `feed`."""


AnyInspector = Inspector | AwaitedInspector
