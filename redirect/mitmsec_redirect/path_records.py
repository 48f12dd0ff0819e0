"""Where an executable lies, as the hooks write it down for each one that they meet: offsets for `path_steps`, a parser.

     0 state │ 4 bytes of names │ 8 names: leaf first, each with its zero │ 776

The key is the executable, 32 bytes as in `process_records`.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

from mitmsec.core.model import Value
from mitmsec_redirect.process_records import NAME_LIMIT, path_of_names

TEXT_LIMIT: Final = 768  # 512 at least, for the last name is read only where the longest would find room
STATE, BYTES, TEXT = 0, 4, 8
_HEAD = struct.Struct("=II")
VALUE_BYTES: Final = TEXT + TEXT_LIMIT
assert TEXT_LIMIT > NAME_LIMIT


class PathState(IntFlag):
    """What `state` may hold; 0: somebody writes it now."""

    DONE = 1
    ROOTED = 2  # as RecordFlag.ROOTED: the names reach the root; without it there is no path that we could tell


class PathMaps(Value, frozen=True):
    """Descriptors of the maps that the programs use."""

    paths: int  # executable → what stands above; the one met longest ago makes room
    blank: int  # one element, all zeros: a value is larger than the stack that it would else begin as


def parse_path(value: bytes) -> str | None:
    """`value` is one element. None: no path is known. Its bytes may be those of two writers, and are not to be trusted.

    As os.fsdecode has it.
    """
    state, length = _HEAD.unpack_from(value)
    names = value[TEXT : TEXT + length]
    if state != PathState.DONE | PathState.ROOTED or not names.endswith(b"\0"):
        return None
    return path_of_names(names)
