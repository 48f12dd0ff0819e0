"""Every policy that was ever loaded, by its fingerprint, so that any decision on record can be made once more.

    keep ──► STATE/policies/FINGERPRINT.json.gz      before it decides anything, and before it is on record
    read ◄── the same bytes, if they still are

What lies under a fingerprint are the bytes that it is the SHA-256 of (`zcat FILE | sha256sum`). A file appears whole or
not at all: it is written beside its place and moved there. Of more than VERSIONS_LIMIT, or LIMIT_BYTES in all, those go
that were loaded longest ago; never one that is in force, and never in silence: who calls is told.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from mitmsec.core.policy import Policy

VERSIONS_LIMIT = 1000
LIMIT_BYTES = 1 << 30
SUFFIX = ".json.gz"
WRITING = "writing"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
COMPRESSION = 4  # lists of a million names in half a second


class NoVersion(Exception):
    """The version cannot be had; the message says why."""


class PolicyVersions:
    """Those in one folder, which is root's. Threads may keep at the same time."""

    def __init__(self, folder: Path, *, limit: int = VERSIONS_LIMIT, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._limit, self._limit_bytes = folder, limit, limit_bytes
        self._one = threading.Lock()

    def keep(self, policy: Policy, in_force: Collection[str] = ()) -> tuple[str, ...]:
        """It survives a kill and a power cut when this returns: the fingerprints of those that had to go for it.

        Raises OSError; then nothing was changed.
        """
        with self._one:
            path = self._path(policy.fingerprint)
            if self._is_whole(policy.fingerprint):
                os.utime(path)
            else:
                self._write(path, gzip.compress(policy.encoded, COMPRESSION, mtime=0))
            return tuple(self._drop_beyond({policy.fingerprint, *in_force}))

    def read(self, fingerprint: str) -> Policy:
        """Raises NoVersion; PermissionError where they are not for this user."""
        try:
            encoded = self._encoded(fingerprint)
        except FileNotFoundError:
            raise NoVersion(f"the policy {fingerprint} is not kept in {self._folder}") from None
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, PermissionError):
                raise
            raise NoVersion(f"the policy {fingerprint} cannot be read: {error}") from error
        if hashlib.sha256(encoded).hexdigest() != fingerprint:
            raise NoVersion(f"what is kept as the policy {fingerprint} is another one: its SHA-256 differs")
        try:
            return msgspec.json.decode(encoded, type=Policy)
        except msgspec.MsgspecError as error:
            raise NoVersion(
                f"the policy {fingerprint} is one of another version of mitmsec, which can read it: {error}"
            ) from error

    def _path(self, fingerprint: str) -> Path:
        if not FINGERPRINT.fullmatch(fingerprint):
            raise NoVersion(f'"{fingerprint}" is no fingerprint of a policy')
        return self._folder / f"{fingerprint}{SUFFIX}"

    def _encoded(self, fingerprint: str) -> bytes:
        with gzip.open(self._path(fingerprint)) as file:
            return file.read()

    def _is_whole(self, fingerprint: str) -> bool:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            return hashlib.sha256(self._encoded(fingerprint)).hexdigest() == fingerprint
        return False

    def _write(self, path: Path, content: bytes) -> None:
        writing = self._folder / WRITING  # of an earlier one that was killed there is one file at most
        writing.unlink(missing_ok=True)
        with open(writing, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o640)) as file:
            os.fchmod(file.fileno(), 0o640)  # whatever the umask; the group is the folder's
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        writing.rename(path)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _drop_beyond(self, in_force: Collection[str]) -> Iterator[str]:
        kept = sorted(self._kept())
        size_bytes, count = sum(size for _, size, _ in kept), len(kept)
        for _, size, fingerprint in kept:
            if count <= self._limit and size_bytes <= self._limit_bytes:
                return
            if fingerprint not in in_force:
                self._path(fingerprint).unlink(missing_ok=True)
                size_bytes, count = size_bytes - size, count - 1
                yield fingerprint

    def _kept(self) -> Iterator[tuple[int, int, str]]:
        """When each was loaded last, how long it is, and which it is."""
        for entry in os.scandir(self._folder):
            fingerprint = entry.name.removesuffix(SUFFIX)
            if entry.name.endswith(SUFFIX) and FINGERPRINT.fullmatch(fingerprint):
                found = entry.stat(follow_symlinks=False)
                yield found.st_mtime_ns, found.st_size, fingerprint
