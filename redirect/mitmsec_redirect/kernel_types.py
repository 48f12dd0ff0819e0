"""The types of the kernel that runs, as it tells them itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mitmsec_redirect.btf import Btf, MalformedBtf, NoSuchMember
from mitmsec_redirect.process_offsets import Offsets

BTF_FILE = Path("/sys/kernel/btf/vmlinux")


@cache
def process_offsets(file: Path = BTF_FILE) -> Offsets | None:
    """Where it keeps what we read of processes; None where it does not say, or keeps it otherwise.

    Read once: it takes some tenths of a second, and does not change while the kernel runs.
    """
    try:
        return Offsets.of(Btf(file.read_bytes()))
    except (OSError, MalformedBtf, NoSuchMember):
        return None
