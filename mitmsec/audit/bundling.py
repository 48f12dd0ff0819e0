"""A bundle made of a log: the events that are asked for, and what proves them."""

from __future__ import annotations

import base64
from datetime import datetime

import msgspec

from mitmsec.audit.bundle import EVENTS_LIMIT, KeptOther, TooMany
from mitmsec.audit.checkpoint import Checkpoint, Untrue, parsed
from mitmsec.audit.criteria import Filter
from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.overview import Among, page
from mitmsec.audit.proving import Unproven
from mitmsec.audit.review import Review
from mitmsec.core.model import Value


class Asked(Value, frozen=True):
    """What is to be in it. `kept`: a checkpoint of the auditor's, with which the log is to be shown to begin."""

    wanted: Filter
    among: Among
    kept: str
    said: str  # the filters, in words
    by: str
    at: datetime


class Bundle:
    """Its parts. `further`: files of other formats, by name."""

    def __init__(
        self, asked: Asked, events: list[Fields], paths: list[list[bytes]], note: str, keys: list[str]
    ) -> None:
        self.asked, self.events, self.paths, self.note, self.keys = asked, events, paths, note, keys
        self.consistency: bytes | None = None
        self.further: dict[str, bytes] = {}


def bundled(review: Review, asked: Asked) -> Bundle | None:
    """None: no checkpoint stands for these events yet. Raises TooMany, KeptOther, Unreadable."""
    found = page(review, asked.wanted, None, EVENTS_LIMIT, asked.among)
    if found.next_before is not None:
        raise TooMany(f"these are more than the {EVENTS_LIMIT} events that a bundle holds; narrow them")
    events = found.events[::-1]
    kept = _kept(asked.kept)
    signed = review.proofs.note(events[-1]["seq"] + 1 if events else 0)
    if signed is None:
        return None
    note, said = signed
    paths = [review.proofs.shown_to_include(event["seq"], said, canonical(event)) for event in events]
    made = Bundle(asked, events, paths, note, [str(key) for _, key in review.proofs.signers()])
    if kept is not None and kept.size != said.size:
        made.consistency = _consistency(review, kept, said)
    return made


def _consistency(review: Review, kept: Checkpoint, said: Checkpoint) -> bytes:
    """Raises KeptOther."""
    if kept.origin != said.origin or kept.size > said.size:
        raise KeptOther("the checkpoint that you have kept is not of this log, or this log is shorter")
    try:
        path = [base64.b64encode(one).decode() for one in review.proofs.shown_to_begin_with(kept, said)]
    except Unproven as error:
        raise KeptOther("this log does not begin with the events of the checkpoint that you have kept") from error
    return msgspec.json.encode({"old": kept.size, "new": said.size, "path": path})


def _kept(text: str) -> Checkpoint | None:
    """Raises KeptOther."""
    if not text.strip():
        return None
    try:
        return _said(text)
    except Untrue as error:
        raise KeptOther(f"what you have kept is no checkpoint: {error}") from error


def _said(note: str) -> Checkpoint:
    return parsed(note.partition("\n\n")[0] + "\n")


def lines_of(bundle: Bundle) -> tuple[bytes, bytes]:
    """The events, and the proofs, as files."""
    events = b"".join(canonical(event) + b"\n" for event in bundle.events)
    proofs = b"".join(
        msgspec.json.encode({"index": event["seq"], "path": [base64.b64encode(one).decode() for one in path]}) + b"\n"
        for event, path in zip(bundle.events, bundle.paths, strict=True)
    )
    return events, proofs
