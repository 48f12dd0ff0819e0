"""The types of the kernel that runs, as it tells them itself."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from msgspec.structs import replace

from mitmsec_redirect import bpf, kept_types, path_steps
from mitmsec_redirect.assembler import Assembler, Register, Size
from mitmsec_redirect.bpf import Attach
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
    offsets, leads = _kept_or_read() if file == BTF_FILE else _read(file)
    if offsets is not None and not _may_cast(offsets):
        offsets = replace(offsets, cast=0)
    return offsets, leads


def _kept_or_read() -> tuple[Offsets | None, LeadOffsets | None]:
    if (found := kept_types.kept()) is not None:
        return found.processes, found.leads
    offsets = _read(BTF_FILE)
    kept_types.keep(*offsets)
    return offsets


def _read(file: Path) -> tuple[Offsets | None, LeadOffsets | None]:
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


def _may_cast(at: Offsets) -> bool:
    """Whether programs of the types that look at their callers may: said by two that do nothing else."""
    asm = Assembler()
    path_steps.current_task(asm, at)
    asm.load(Register.R2, Register.R0, at.task_leader, Size.LONG)
    asm.load(Register.R2, Register.R2, at.task_start, Size.LONG)
    asm.exit(1)
    try:
        for attach in (Attach.CONNECT4, Attach.SOCK_OPS):
            os.close(bpf.load_program(asm.code(), attach, "ms_may_cast"))
    except (OSError, bpf.EbpfUnavailable):
        return False
    return True
