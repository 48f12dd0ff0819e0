"""What is known in the kernel of a process: the word in the map `selected` (by process) and `executables` (by file).

Under a standing selection the connect hook looks the caller up once in each `connect()`. No word means: not selected,
unless everything is.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

PROCESS_KEY: Final = struct.Struct("=I")  # tgid in the first pid namespace
VERDICT: Final = struct.Struct("=I")


class Verdict(IntFlag):
    """Bits of the word."""

    SELECTED = 1
    UNDECIDED = 2  # nobody has judged its program yet: diverted where that works, and the gate asks before all else
    OWN_TRAFFIC = 4  # ours, or diverted by a run already: never diverted, whatever else is said
    INHERITED = 8  # what it starts is what it is, whatever program that executes
