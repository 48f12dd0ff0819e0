"""What a packet's comment says about its process.

The first packet of a flow carries everything that is known, one `key: value` line each; every packet with data
carries a line short enough to repeat, so that a display filter such as `frame.comment contains "curl"` finds them all.
"""

from __future__ import annotations

from mitmsec.core.model import Process


def full(process: Process, said: str = "") -> str:
    """Everything about `process`, then `said`, which is the caller's own lines (action, rule, …)."""
    pairs = [
        ("process", process.exe or process.name or "unknown"),
        ("claimed path", process.claimed_exe),
        ("pid", str(process.pid)),
        ("started", process.started),
        ("user", process.user),
        ("sha256", process.sha256),
        ("parent", _parent(process)),
        ("unit", process.unit),
        ("container", process.container),
        ("services", ", ".join(process.services) or None),
        ("package", process.package),
        ("signer", process.signer),
        ("owner found by", f"{process.source} ({process.confidence.value})"),
    ]
    lines = [f"{key}: {one_line(value)}" for key, value in pairs if value is not None]
    return "\n".join([*lines, *filter(None, (one_line(line) for line in said.splitlines()))])


def short(process: Process) -> str:
    """One line: the program and its pid."""
    return one_line(f"{process.exe or process.name or 'unknown'} pid {process.pid}")


def one_line(text: str) -> str:
    """`text` with everything that is not printable escaped: a path with a newline in it cannot forge a line."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _parent(process: Process) -> str | None:
    if process.parent is None:
        return None
    return f"{process.parent.exe or 'unknown'} pid {process.parent.pid}"
