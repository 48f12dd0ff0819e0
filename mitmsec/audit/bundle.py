"""An export bundle: events, a checkpoint that stands for them, and for each the proof that it is in that log.

    events.jsonl       canonical envelopes, one a line, in the order of their numbers
    proofs.jsonl       {"index": …, "path": [base64, …]}, of the same line's event (RFC 9162 §2.1.3)
    checkpoint.note    whose root they lead to, signed (C2SP tlog-checkpoint)
    consistency.json   {"old": …, "new": …, "path": […]}: that the log begins with a checkpoint which the auditor kept
    log.key · manifest.json · README.txt · formats     for people and other tools; not checked

Pure: `check` takes what a bundle holds and what the auditor kept, and says whether the one follows from the other.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

import msgspec

from mitmsec.audit.checkpoint import Checkpoint, Checks, LogKey, Untrue, opened, parsed
from mitmsec.audit.merkle import HASH_BYTES, is_consistent, leaf_hash, root_from
from mitmsec.core.model import Value

EVENTS, PROOFS, NOTE, CONSISTENCY = "events.jsonl", "proofs.jsonl", "checkpoint.note", "consistency.json"
KEY, MANIFEST, README = "log.key", "manifest.json", "README.txt"
EVENTS_LIMIT = 20_000
PATH_LIMIT = 64


class KeptOther(Exception):
    """The checkpoint that was kept is none, or not one of this log; the text says which."""


class TooMany(Exception):
    """More events than a bundle holds."""


class Sound(Value, frozen=True):
    """Every event is in the log of this checkpoint. `signed`: by a key that the auditor kept. `kept`: that log begins
    with what the auditor kept, of so many events; None: nothing was given."""

    events: int
    origin: str
    size: int
    signed: bool
    kept: int | None = None


class Flawed(Value, frozen=True):
    """The bundle shows less than it claims, or something else. `line` of events.jsonl, from 1; None: not of one."""

    why: str
    line: int | None = None


class _Proof(msgspec.Struct, frozen=True):
    index: int
    path: list[str]


class _Consistency(msgspec.Struct, frozen=True):
    old: int
    new: int
    path: list[str]


class _Seq(msgspec.Struct, frozen=True):
    seq: int


def check(
    files: Mapping[str, bytes], checks: Checks, keys: Sequence[LogKey] = (), kept: str | None = None
) -> Sound | Flawed:
    """`keys` and `kept` (a checkpoint) are what the auditor has from elsewhere; the bundle's own key is never used."""
    try:
        said = _checkpoint(_text(files, NOTE), checks, keys)
        events, proofs = _lines(files, EVENTS), _lines(files, PROOFS)
        if len(events) != len(proofs):
            return Flawed(why=f"{len(events)} events, and {len(proofs)} proofs")
        last = -1
        for line, (event, proof) in enumerate(zip(events, proofs, strict=True), 1):
            last, why = _event_flaw(event, proof, said, last)
            if why:
                return Flawed(why=why, line=line)
        size = None if kept is None else _kept_size(files, said, _checkpoint(kept, checks, keys))
    except Untrue as error:
        return Flawed(why=str(error))
    return Sound(events=len(events), origin=said.origin, size=said.size, signed=bool(keys), kept=size)


def _checkpoint(note: str, checks: Checks, keys: Sequence[LogKey]) -> Checkpoint:
    """Raises Untrue."""
    said = parsed(note.partition("\n\n")[0] + "\n")
    if not keys:
        return said
    for key in keys:
        if key.name == said.origin:
            return opened(note, key, checks)
    raise Untrue(f"the checkpoint is one of {said.origin!a}, whose key was not given")


def _event_flaw(event: bytes, proof: bytes, said: Checkpoint, last: int) -> tuple[int, str]:
    """The event's number, and what is wrong with it."""
    try:
        number = msgspec.json.decode(event, type=_Seq).seq
        shown = msgspec.json.decode(proof, type=_Proof)
        path = _hashes(shown.path)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return last, f"it cannot be read: {error}"
    if shown.index != number:
        return last, f"event {number} has the proof of event {shown.index}"
    if number <= last:
        return last, f"event {number} stands behind event {last}"
    if not 0 <= number < said.size or root_from(leaf_hash(event), number, said.size, path) != said.root:
        return number, f"event {number} is not in the log: it was changed, or its proof is another one's"
    return number, ""


def _kept_size(files: Mapping[str, bytes], said: Checkpoint, kept: Checkpoint) -> int:
    """Of what was kept, with which this log begins. Raises Untrue."""
    if kept.origin != said.origin:
        raise Untrue(f"the bundle is of the log {said.origin!a}, and what was kept of {kept.origin!a}")
    if kept.size == said.size:
        if kept.root != said.root:
            raise Untrue("its log is not the one that was kept: both have as many events, and they differ")
        return kept.size
    if CONSISTENCY not in files:
        raise Untrue(
            "it does not show whether its log begins with the checkpoint that was kept: export it again, and give that"
            " checkpoint there"
        )
    try:
        shown = msgspec.json.decode(files[CONSISTENCY], type=_Consistency)
        path = _hashes(shown.path)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Untrue(f"{CONSISTENCY} cannot be read: {error}") from error
    sizes = (min(kept.size, said.size), max(kept.size, said.size))
    old, new = (kept, said) if kept.size < said.size else (said, kept)
    if (shown.old, shown.new) != sizes or not is_consistent(old.size, old.root, new.size, new.root, path):
        raise Untrue("its log is not shown to be the one that was kept")
    return kept.size


def _hashes(texts: Sequence[str]) -> list[bytes]:
    """Raises ValueError."""
    if len(texts) > PATH_LIMIT:
        raise ValueError("that is no path")
    try:
        found = [base64.b64decode(text, validate=True) for text in texts]
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if any(len(one) != HASH_BYTES for one in found):
        raise ValueError("that is no hash")
    return found


def _lines(files: Mapping[str, bytes], name: str) -> list[bytes]:
    """Raises Untrue."""
    content = _content(files, name)
    if content and not content.endswith(b"\n"):
        raise Untrue(f"{name} ends in the middle of a line")
    if content.count(b"\n") > EVENTS_LIMIT:
        raise Untrue(f"{name} has more lines than a bundle has events")
    return content.split(b"\n")[:-1]


def _text(files: Mapping[str, bytes], name: str) -> str:
    """Raises Untrue."""
    try:
        return _content(files, name).decode()
    except UnicodeDecodeError:
        raise Untrue(f"{name} is no text") from None


def _content(files: Mapping[str, bytes], name: str) -> bytes:
    """Raises Untrue."""
    if name not in files:
        raise Untrue(f"it has no {name}")
    return files[name]
