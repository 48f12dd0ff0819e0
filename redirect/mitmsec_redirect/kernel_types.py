"""The types of the kernel that runs, as it tells them itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mitmsec_redirect.btf import Btf, MalformedBtf, NoSuchMember
from mitmsec_redirect.lead_offsets import LeadOffsets
from mitmsec_redirect.process_offsets import Offsets

BTF_FILE = Path("/sys/kernel/btf/vmlinux")


def process_offsets(file: Path = BTF_FILE) -> Offsets | None:
    """Where it keeps what we read of processes; None where it does not say, or keeps it otherwise."""
    return _offsets(file)[0]


def lead_offsets(file: Path = BTF_FILE) -> LeadOffsets | None:
    """The same of what we read of UDP sockets."""
    return _offsets(file)[1]


@cache
def _offsets(file: Path) -> tuple[Offsets | None, LeadOffsets | None]:
    """Read once: it takes some tenths of a second, and does not change while the kernel runs."""
    try:
        types = Btf(file.read_bytes())
    except (OSError, MalformedBtf):
        return None, None
    return _found(Offsets, types), _found(LeadOffsets, types)


def _found[Places: (Offsets, LeadOffsets)](kind: type[Places], types: Btf) -> Places | None:
    try:
        return kind.of(types)
    except (MalformedBtf, NoSuchMember):
        return None
