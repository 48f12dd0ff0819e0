"""What has to outlive the supervisor beside a diverter: pinned before the diverter begins, and never later than it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mitmsec_redirect import connect_hook


class KeptPins:
    """A folder on a bpffs, and in it what somebody else pins."""

    def __init__(self, keep: Callable[[Path], None]) -> None:
        """`keep` pins into a folder that exists; it may raise OSError."""
        self._keep = keep
        self._folder: Path | None = None

    def are_in(self, folder: Path | None) -> None:
        """From now on; a folder that there is not yet, or the same as before. None: nowhere, and nothing is left."""
        if folder is None and self._folder is not None:
            connect_hook.reap(self._folder, detach=False)
            self._folder = None
        if folder is not None and self._folder is None:
            folder.mkdir(mode=0o700)
            self._folder = folder
            self._keep(folder)
