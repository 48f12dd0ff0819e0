"""What a hook does not tell because this kernel will not have the programs that would; told, not hidden.

programs that note where executables lie ── refused ─► that look at their caller ── refused ─► that know its pid
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from mitmsec.core.model import Value
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets

NO_TYPES = "it does not tell its types"


class Untold(StrEnum):
    """What is missing."""

    CALLERS = "callers"  # which process of a pid it was, and which program
    EXECUTABLE_PATHS = "executable_paths"  # where that program lies
    UDP = "udp"  # under nftables: flows, and names from DNS


class Shortfall(Value, frozen=True):
    """`why`: the kernel's own words."""

    untold: Untold
    why: str

    def __str__(self) -> str:
        return f"{_MEANS[self.untold]}: {self.why}"

    @property
    def remedy(self) -> str:
        return _REMEDIES[self.untold]


_SO = "so a program that ends at once may stay unknown"
_MEANS = {
    Untold.CALLERS: f"callers are told by their pids alone, {_SO}",
    Untold.EXECUTABLE_PATHS: f"where executables lie is not noted, {_SO}",
    Untold.UDP: "UDP is not recorded, and no name comes from DNS",
}
_REMEDIES = {
    Untold.CALLERS: "Use Linux 5.18 or later, built with CONFIG_DEBUG_INFO_BTF.",
    Untold.EXECUTABLE_PATHS: "Start Linux without lockdown=confidentiality (see /sys/kernel/security/lockdown).",
    Untold.UDP: "Use Linux with CONFIG_NETFILTER_NETLINK_LOG, or leave another tool fewer NFLOG groups.",
}


class Layout(Protocol):
    """What programs are built from, as far as it decides what they tell."""

    @property
    def offsets(self) -> Offsets | None: ...
    @property
    def paths(self) -> PathMaps | None: ...


def of(wanted: Layout, accepted: Layout, refused: str) -> Shortfall | None:
    """None: as much is told as was wanted. `refused` as `hook_programs.load` tells it."""
    if accepted.offsets is None:
        return Shortfall(Untold.CALLERS, refused or NO_TYPES)
    if wanted.paths is not None and accepted.paths is None:
        return Shortfall(Untold.EXECUTABLE_PATHS, refused)
    return None
