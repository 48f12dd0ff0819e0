"""The state directory: who owns which folder, where things lie, and that nobody else can have laid them there.

STATE/            root 0711
  ca/             signer   0711   issuing key, the signer's alone; certificates, which anybody may read
  log/            recorder 0750   the audit log; group `mitmsec` may read
  quarantine/     recorder 0700   what findings have put there, sealed to people
  policies/       root 0750       every policy that was loaded, by its fingerprint; group `mitmsec` may read
  compiled/       root 0700       what inspectors look for, compiled: workers run it as code
  trust/          root 0755       what `ca trust` has done, and what lay in those stores before (0700)
  review/         console 0700    accounts and cases of reviewers
  run/            root 0711       control socket, lock, supervisor's log, one folder a run

What exists already is taken over only if it is a real folder, not a link, of the right owner, that nobody else may
write to; and only below folders that nobody but root could exchange it in. Otherwise whoever made it could have put
links, keys or a log there, and root would write through them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.messages import Role
from mitmsec.service.accounts import FIRST_UID, account_of, readers_gid

DEFAULT = Path("/var/lib/mitmsec")
LINKS_LIMIT = 40  # as the kernel's own


class StateBusy(Exception):
    """Another supervisor holds this state directory."""


class StateRefused(Exception):
    """What lies there must not be used: `reason` says why, `remedy` what to do next."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class State:
    """Paths below one state directory, made on demand with the right owners."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.ca = self.folder / "ca"
        self.log = self.folder / "log"
        self.log_file = self.log / "audit.db"
        self.quarantine = self.folder / "quarantine"
        self.policies = self.folder / "policies"
        self.compiled = self.folder / "compiled"
        self.review = self.folder / "review"
        self.run = self.folder / "run"
        self.jail = self.run / "jail"
        self.bpf = self.run / "bpf"
        self.trust = self.folder / "trust"
        self.control = self.run / "control.sock"
        self.lock = self.run / "supervisor.lock"
        self.supervisor_log = self.run / "supervisor.log"

    def make(self) -> None:
        """Create what is missing and put owners and modes right. Needs root. Raises OSError, StateRefused."""
        signer, recorder, console = map(account_of, (Role.SIGNER, Role.RECORDER, Role.CONSOLE))
        folders = (
            (self.folder, 0, 0, 0o711),
            (self.run, 0, 0, 0o711),
            (self.jail, 0, 0, 0o755),
            (self.ca, signer.uid, signer.gid, 0o711),
            (self.log, recorder.uid, readers_gid() or recorder.gid, 0o2750),
            (self.quarantine, recorder.uid, recorder.gid, 0o700),
            (self.policies, 0, readers_gid() or 0, 0o2750),
            (self.compiled, 0, 0, 0o700),
            (self.review, console.uid, console.gid, 0o700),
        )
        _check_way(self.folder)  # everything is looked at before anything is changed
        for path, uid, _, _ in folders:
            with contextlib.suppress(FileNotFoundError):
                os.close(_opened(path, uid))
        self._check_content()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for path, uid, gid, mode in folders:
            _adopt(path, uid, gid, mode)

    def _check_content(self) -> None:
        """A folder that holds other things is somebody's mistake, unless it has been a state already."""
        names = {entry.name for entry in os.scandir(self.folder)} if self.folder.is_dir() else set()
        others = names - {
            folder.name
            for folder in (
                self.run,
                self.log,
                self.quarantine,
                self.policies,
                self.compiled,
                self.review,
                self.ca,
                self.trust,
            )
        }
        if others and not (self.run / "identity").is_file():
            raise _refused(self.folder, f"is not a state directory: it holds {min(others)}")

    def identity(self) -> str:
        """A short name that stands in cgroups and pins of this state, the same as long as the folder lives."""
        path = self.run / "identity"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            path.write_text(os.urandom(4).hex() + "\n")
            return path.read_text().strip()

    def session_folder(self, session: str) -> Path:
        return self.run / session

    def hold(self) -> int:
        """Take the supervisor's lock; the descriptor holds it. Raises StateBusy."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(self.lock)):
                raise BlockingIOError  # `clean --purge` has removed it meanwhile: who comes next holds another file
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            raise StateBusy(str(self.folder)) from None
        return descriptor

    def log_was_emptied(self) -> bool:
        """The log is empty although there is a CA: the first start, which made that, has recorded it."""
        with contextlib.suppress(OSError):
            files = (self.log_file, self.log_file.with_name(f"{self.log_file.name}-wal"))
            return (self.ca / "root.pem").exists() and files[0].exists() and not any(map(_size_bytes, files))
        return False


def _adopt(path: Path, uid: int, gid: int, mode: int) -> None:
    """Make the folder `path`, or take it over from `uid` or root."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    descriptor = _opened(path, uid)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _opened(path: Path, uid: int) -> int:
    """A descriptor of the folder `path`, which may be taken over. Raises StateRefused, FileNotFoundError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _refused(path, "is not a folder, or is a symbolic link to one") from None
        raise
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in (0, uid, *range(FIRST_UID, FIRST_UID + 4)):
            raise _refused(path, f"belongs to user {found.st_uid}")
        if _others_may_write(found):
            raise _refused(path, f"may be written to by others (mode {stat.S_IMODE(found.st_mode):04o})")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_way(folder: Path) -> None:
    """Nobody else can exchange `folder` for another one: no folder and no link on the way to it is theirs."""
    ours = {0, int(caller) if (caller := os.environ.get("SUDO_UID", "")).isdigit() else 0}
    for step, found in _steps(folder.parent):
        if found.st_uid not in ours:
            raise _refused(step, f"belongs to user {found.st_uid}, who could put another folder in place of {folder}")
        is_link = stat.S_ISLNK(found.st_mode)  # whose mode says nothing
        if not is_link and _others_may_write(found) and not found.st_mode & stat.S_ISVTX:
            raise _refused(step, f"may be written to by others, who could put another folder in place of {folder}")


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each folder and each link that the kernel passes on its way to `path`, as far as that exists."""
    here, ahead, links = Path("/"), list(reversed(path.parts[1:])), 0
    yield here, os.lstat(here)
    while ahead:
        part = ahead.pop()
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            found = os.lstat(step)
        except FileNotFoundError:
            return
        yield step, found
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links += 1
        if links > LINKS_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step))
        if target.is_absolute():
            here = Path("/")
        ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _others_may_write(found: os.stat_result) -> bool:
    return bool(found.st_mode & 0o002) or bool(found.st_mode & 0o020 and found.st_gid != 0)


def _refused(path: Path, why: str) -> StateRefused:
    return StateRefused(f"--state: {path} {why}", "name a new folder, in one that only root may write to")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
