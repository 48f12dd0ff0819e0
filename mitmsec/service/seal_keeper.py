"""What a sealed key needs of the operating system: that it keeps a secret which opens on this machine alone."""

from __future__ import annotations

from typing import Protocol


class SealFailed(OSError):
    """The operating system does not keep the secret, or does not open what it kept; the text says who, and why."""


class SealKeeper(Protocol):
    """systemd on Linux (mitmsec.service.sealing), DPAPI on Windows (mitmsec.service.dpapi)."""

    def kept(self, secret: bytes) -> bytes:
        """`secret` as it may lie on a disk. Raises SealFailed."""

    def opened(self, credential: bytes) -> bytes:
        """The secret in what `kept` made on this machine. Raises SealFailed."""
