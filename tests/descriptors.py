"""The file descriptors that this process has, for tests that compare them."""

from __future__ import annotations

import gc
import os


def descriptors() -> set[str]:
    """Those that are open, once what earlier tests left as garbage is closed: that would else happen in between."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
