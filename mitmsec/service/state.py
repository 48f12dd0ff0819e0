"""The state directory: who owns which folder, and where things lie.

STATE/            root 0711
  ca/             signer   0700   issuing key and certificates
  log/            recorder 0750   the audit log; group `mitmsec` may read
  run/            root 0711       control socket, lock, supervisor's log, one folder a run
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from mitmsec.core.messages import Role
from mitmsec.service.accounts import account_of, readers_gid

DEFAULT = Path("/var/lib/mitmsec")


class StateBusy(Exception):
    """Another supervisor holds this state directory."""


class State:
    """Paths below one state directory, made on demand with the right owners."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.ca = self.folder / "ca"
        self.log = self.folder / "log"
        self.run = self.folder / "run"
        self.jail = self.run / "jail"
        self.bpf = self.run / "bpf"
        self.control = self.run / "control.sock"
        self.lock = self.run / "supervisor.lock"
        self.supervisor_log = self.run / "supervisor.log"

    def make(self) -> None:
        """Create what is missing and put owners and modes right. Needs root. Raises OSError."""
        signer, recorder = account_of(Role.SIGNER), account_of(Role.RECORDER)
        for path, uid, gid, mode in (
            (self.folder, 0, 0, 0o711),
            (self.run, 0, 0, 0o711),
            (self.jail, 0, 0, 0o755),
            (self.ca, signer.uid, signer.gid, 0o700),
            (self.log, recorder.uid, readers_gid() or recorder.gid, 0o2750),
        ):
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, uid, gid, follow_symlinks=False)
            path.chmod(mode)

    def identity(self) -> str:
        """A short name that stands in cgroups and pins of this state, the same as long as the folder lives."""
        path = self.run / "identity"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            path.write_text(secrets.token_hex(4) + "\n")
            return path.read_text().strip()

    def session_folder(self, session: str) -> Path:
        return self.run / session

    def hold(self) -> int:
        """Take the supervisor's lock; the descriptor holds it. Raises StateBusy."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateBusy(str(self.folder)) from None
        return descriptor
