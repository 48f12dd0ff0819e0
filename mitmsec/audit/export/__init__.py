"""Events in other programs' formats. Pure: an event and where it is from in, one line out."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """What an export is written in."""

    CEF = "cef"
    CSV = "csv"
    ECS = "ecs"
    JSONL = "jsonl"
    OCSF = "ocsf"
    SYSLOG = "syslog"
