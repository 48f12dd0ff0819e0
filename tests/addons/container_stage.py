"""Containers for tests, made by programs of their kind, and read in slices of any size."""

from __future__ import annotations

import io
import tarfile
import zipfile

from mitmsec_addons.containers import Entry, Event, Mark, Passed, Reader, Unreadable

CARD = b"my card number is 4539 1488 0343 6467, thanks"


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return made.getvalue()


def tarred(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def events(reader: Reader, data: bytes, step: int = 997) -> list[Event]:
    """All of them, with the pieces of one content joined."""
    told: list[Event] = []
    for at in range(0, len(data), step):
        told += reader.feed(data[at : at + step])
    told += reader.close()
    joined: list[Event] = []
    for one in told:
        if isinstance(one, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += one
        elif one != b"" and not isinstance(one, Passed):
            joined.append(one)
    return joined


def contents(reader: Reader, data: bytes, step: int = 997) -> dict[str, bytes]:
    """What is in it, by name."""
    found: dict[str, bytes] = {}
    name = ""
    for event in events(reader, data, step):
        match event:
            case Entry(name=name):
                found[name] = b""
            case bytes():
                found[name] += event
            case Unreadable() | Mark.ENDED:
                pass
    return found


def unread(reader: Reader, data: bytes, step: int = 997) -> list[str]:
    """What could not be read, and why."""
    return [event.why for event in events(reader, data, step) if isinstance(event, Unreadable)]
