"""The file descriptors that this process has, and what of BPF they hold, for tests that compare them."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path


def descriptors() -> set[str]:
    """Those that are open, once what earlier tests left as garbage is closed: that would else happen in between."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def bpf_objects() -> set[str]:
    """The programs and links that descriptors hold, by their numbers: what else is closed meanwhile is no matter."""
    held: set[str] = set()
    for one in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.update(line for line in one.read_text().splitlines() if line.startswith(("prog_id:", "link_id:")))
    return held
