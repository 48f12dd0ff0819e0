"""What the client of a blocked flow is told, in plaintext and inside TLS alike."""

from __future__ import annotations


def block_text(rule: str, reason: str, flow: str) -> str:
    """Plain text, so nothing in it can be markup."""
    return f"Blocked by mitmsec.\n\nrule:   {rule}\nreason: {reason}\nid:     {flow}\n"
