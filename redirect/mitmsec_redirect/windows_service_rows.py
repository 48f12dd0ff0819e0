"""The services that EnumServicesStatusExW tells of: ENUM_SERVICE_STATUS_PROCESSW (winsvc.h), laid out for 64 bits.

    name │ display name │ type, state, controls, exit code, specific, check point, wait hint, pid, flags │ padding
      8  │       8      │                                      9 × 4                                     │    4

Rows first, texts behind them. Names are pointers into the same buffer, so where that lies is needed to read them. The
system fills it, so there are two outcomes: the services, or `Malformed` where a row or a name lies outside. No bytes
raise.
"""

from __future__ import annotations

import struct
from typing import Final

from mitmsec.core.model import Value
from mitmsec_redirect.windows_rows import Malformed

ROW: Final = struct.Struct("<QQ9I4x")
_PID = 9  # the place in a row


class RunningService(Value, frozen=True):
    """One service and the process that it runs in."""

    name: str
    pid: int


def parse_services(buffer: bytes, base: int, count: int) -> tuple[RunningService, ...] | Malformed:
    """Those that have a process, in the system's order. The buffer was filled at address `base`."""
    if count * ROW.size > len(buffer):
        return Malformed(reason=f"{count} services promised in {len(buffer)} bytes")
    found = []
    for at in range(0, count * ROW.size, ROW.size):
        fields = ROW.unpack_from(buffer, at)
        name = _text(buffer, fields[0] - base)
        if name is None:
            return Malformed(reason="a service's name lies elsewhere")
        if pid := fields[_PID]:
            found.append(RunningService(name=name, pid=pid))
    return tuple(found)


def services_by_pid(services: tuple[RunningService, ...]) -> dict[int, tuple[str, ...]]:
    """A process may run several; their names in order."""
    names: dict[int, list[str]] = {}
    for one in services:
        names.setdefault(one.pid, []).append(one.name)
    return {pid: tuple(sorted(own)) for pid, own in names.items()}


def _text(buffer: bytes, at: int) -> str | None:
    """UTF-16 up to its zero; None: it begins or ends outside."""
    if not 0 <= at < len(buffer):
        return None
    end = at
    while buffer[end : end + 2] != b"\0\0":
        if end + 2 > len(buffer):
            return None
        end += 2
    return buffer[at:end].decode("utf-16-le", errors="replace")
