"""A bundle as a ZIP file: written by the console; read by `audit verify --bundle`, from anybody, within bounds."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path

import msgspec

from mitmsec import __version__
from mitmsec.audit.bundle import CONSISTENCY, EVENTS, KEY, MANIFEST, NOTE, PROOFS, README
from mitmsec.audit.bundling import Bundle, lines_of

FILES_LIMIT = 40
WHOLE_LIMIT_BYTES = 1 << 30
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
CHECKED = frozenset({EVENTS, PROOFS, NOTE, CONSISTENCY})
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

TEXT = """\
What this is
============

Events of the audit log {origin}, exported by {by} at {at}:
{said}

  {events:20}{count} events, one a line, exactly as they are in the log
  {proofs:20}for each line the hashes that lead from it to the log's root (RFC 9162, 2.1.3)
  {note:20}the log's root, signed (C2SP tlog-checkpoint); it stands for {size} events
  {key:20}the key that this log says it signs with: believe the one that you have kept, not this
{more}
How to verify it
================

On any machine, without the log and without a network:

  mitmsec audit verify --bundle FILE.zip --key KEPT.key --checkpoint KEPT.note

KEPT.key and KEPT.note are what `mitmsec audit key` and `mitmsec audit checkpoint` printed when somebody last kept them
elsewhere. Without --key nothing says who signed; without --checkpoint nothing says that the log was not written anew.

Without mitmsec: the leaf of a line is SHA-256(0x00 || the line without its newline), a node is SHA-256(0x01 || left ||
right), and the path of each proof leads to the root in {note} (RFC 9162, 2.1.3.2). Any tool for transparency
logs opens the note with the key.

What it cannot show: that no other event was left out which meets the same filters. For that, verify the log itself.
"""


class NoBundle(Exception):
    """The file is none; the text says why."""


def written(bundle: Bundle) -> bytes:
    """The ZIP file."""
    events, proofs = lines_of(bundle)
    files = {EVENTS: events, PROOFS: proofs, NOTE: bundle.note.encode(), KEY: _joined(bundle.keys)}
    if bundle.consistency is not None:
        files[CONSISTENCY] = bundle.consistency
    files |= bundle.further
    files[MANIFEST] = _manifest(bundle, sorted(files))
    files[README] = _readme(bundle)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        at = bundle.asked.at
        for name in sorted(files):
            about = zipfile.ZipInfo(name, (at.year, at.month, at.day, at.hour, at.minute, at.second))
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            archive.writestr(about, files[name])
    return target.getvalue()


def _joined(keys: list[str]) -> bytes:
    return "".join(f"{key}\n" for key in keys).encode()


def _manifest(bundle: Bundle, files: list[str]) -> bytes:
    about = {
        "by": bundle.asked.by,
        "events": len(bundle.events),
        "files": files,
        "filters": bundle.asked.said,
        "mitmsec": __version__,
        "time": bundle.asked.at.isoformat(timespec="seconds"),
    }
    return msgspec.json.format(msgspec.json.encode(about, order="sorted"), indent=2) + b"\n"


def _readme(bundle: Bundle) -> bytes:
    origin, size = bundle.note.split("\n", 2)[:2]
    more = "".join(f"  {name:20}the same events in another format; not covered by proofs\n" for name in bundle.further)
    return TEXT.format(
        origin=origin, size=size, by=bundle.asked.by, at=bundle.asked.at.isoformat(timespec="seconds"),
        said=f"filters: {bundle.asked.said}", count=len(bundle.events), events=EVENTS, proofs=PROOFS, note=NOTE,
        key=KEY, more=more,
    ).encode()  # fmt: skip


def read(path: Path) -> dict[str, bytes]:
    """What `check` looks at, by name. Nothing is ever written. Raises NoBundle, OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise NoBundle(f"it is no ZIP file, or a damaged one: {error}") from error


def _read(archive: zipfile.ZipFile) -> dict[str, bytes]:
    listed = archive.infolist()
    if len(listed) > FILES_LIMIT:
        raise NoBundle(f"it has {len(listed)} files; a bundle has {FILES_LIMIT} at most")
    found: dict[str, bytes] = {}
    left_bytes = WHOLE_LIMIT_BYTES
    for about in listed:
        if not NAME.fullmatch(about.filename) or about.flag_bits & 1 or about.compress_type not in METHODS:
            raise NoBundle(f"it holds {about.filename[:80]!a}, which is nothing that a bundle holds")
        if about.filename not in CHECKED:
            continue
        if about.filename in found:
            raise NoBundle(f"it has {about.filename} twice")
        with archive.open(about) as file:
            content = file.read(left_bytes + 1)  # what it says of its size is not believed
        left_bytes -= len(content)
        if left_bytes < 0:
            raise NoBundle(f"it holds more than {WHOLE_LIMIT_BYTES >> 20} MiB")
        found[about.filename] = content
    return found
