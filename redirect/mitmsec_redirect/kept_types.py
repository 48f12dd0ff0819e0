"""What was found of the running kernel's types, kept until it ends: to walk through all of them takes 0.1 s of CPU
time, and they change with the kernel only.

    /run/mitmsec-kernel-types   one line of JSON; root's, and nobody else can write it

Without such a file, with one of another boot, of another version of ours or that others could have written, everything
is as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from mitmsec.core.model import Value
from mitmsec_redirect import lead_offsets, process_offsets
from mitmsec_redirect.lead_offsets import LeadOffsets
from mitmsec_redirect.process_offsets import Offsets

FILE = Path("/run/mitmsec-kernel-types")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SIZE_LIMIT_BYTES = 1 << 16


class Found(Value, frozen=True):
    """Offsets of the kernel that has this boot's number; None: it does not say, or is built otherwise."""

    boot: str
    version: str  # of what was looked for
    processes: Offsets | None
    leads: LeadOffsets | None


def boot() -> str:
    """The number of this boot. Raises OSError."""
    return BOOT_ID.read_text().strip()


def version() -> str:
    """Changes with the modules that know what to look for."""
    digest = hashlib.sha256()
    for module in (process_offsets, lead_offsets):
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.hexdigest()


def kept(file: Path = FILE) -> Found | None:
    """What was kept since the kernel began; None for nothing that holds."""
    try:
        found = msgspec.json.decode(_content(file), type=Found)
        return found if (found.boot, found.version) == (boot(), version()) else None
    except (OSError, msgspec.MsgspecError):
        return None


def keep(processes: Offsets | None, leads: LeadOffsets | None, file: Path = FILE) -> None:
    """For the next who asks; where it cannot be kept, that one looks again."""
    with contextlib.suppress(OSError):
        found = Found(boot=boot(), version=version(), processes=processes, leads=leads)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}-")
        try:
            with open(descriptor, "wb") as writing:
                writing.write(msgspec.json.encode(found))
            os.rename(name, file)
        except OSError:
            os.unlink(name)
            raise


def _content(file: Path) -> bytes:
    """Of a file that only root can have written. Raises OSError."""
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reading:
        about = os.fstat(reading.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid or about.st_mode & 0o022 or about.st_size > SIZE_LIMIT_BYTES:
            raise PermissionError(f"{file} is not only root's")
        return reading.read(SIZE_LIMIT_BYTES)
