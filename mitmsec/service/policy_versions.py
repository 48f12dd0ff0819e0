"""Every policy that was ever loaded, by its fingerprint, so that any decision on record can be made once more.

    keep ──► STATE/policies/FINGERPRINT.json.gz      before it decides anything, and before it is on record
             STATE/policies/SHA256.names.gz          the names of a list, once for all versions that refer to it
    read ◄── the same bytes, if they still are

What lies under a fingerprint, or under a list's hash, are the bytes that it is the SHA-256 of (`zcat FILE |
sha256sum`). A file appears whole or not at all: it is written beside its place and moved there. Of more than
VERSIONS_LIMIT, or LIMIT_BYTES in all, those go that were loaded longest ago, with lists that no other refers to; never
one that is in force, and never in silence: who calls is told.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import threading
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from mitmsec.core.host_lists import HostList
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import with_names

VERSIONS_LIMIT = 1000
LIMIT_BYTES = 1 << 30
SUFFIX = ".json.gz"
LIST_SUFFIX = ".names.gz"
WRITING = "writing"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
WHOLE_LIMIT_BYTES = 1 << 29  # of what one file unpacks to: more than any policy or list may hold
COMPRESSION = 4  # lists of a million names in half a second


class _Uses(msgspec.Struct):
    """Of a version, its lists alone."""

    lists: tuple[HostList, ...] = ()


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
            for one in policy.lists:  # first: no version is ever there without its lists
                self._keep_list(one)
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
            policy = msgspec.json.decode(encoded, type=Policy)
            return replace(policy, lists=tuple(map(self._whole_list, policy.lists))) if policy.lists else policy
        except msgspec.MsgspecError as error:
            raise NoVersion(
                f"the policy {fingerprint} is one of another version of mitmsec, which can read it: {error}"
            ) from error

    def _keep_list(self, one: HostList) -> None:
        path = self._list_path(one.sha256)
        try:
            self._whole_list(one)
        except NoVersion:
            self._write(path, gzip.compress(one.text.encode(), COMPRESSION, mtime=0))

    def _whole_list(self, reference: HostList) -> HostList:
        """It with its names. Raises NoVersion, PermissionError."""
        try:
            text = _whole(self._list_path(reference.sha256))
            if hashlib.sha256(text).hexdigest() != reference.sha256:
                raise NoVersion(f"what is kept as its list {reference.name} is another one: its SHA-256 differs")
            return with_names(reference, text)
        except PermissionError:
            raise
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise NoVersion(f"the names of its list {reference.name} cannot be read: {error}") from error

    def _list_path(self, sha256: str) -> Path:
        if not FINGERPRINT.fullmatch(sha256):
            raise NoVersion(f'"{sha256}" is no hash of a list')
        return self._folder / f"{sha256}{LIST_SUFFIX}"

    def _path(self, fingerprint: str) -> Path:
        if not FINGERPRINT.fullmatch(fingerprint):
            raise NoVersion(f'"{fingerprint}" is no fingerprint of a policy')
        return self._folder / f"{fingerprint}{SUFFIX}"

    def _encoded(self, fingerprint: str) -> bytes:
        return _whole(self._path(fingerprint))

    def _is_whole(self, fingerprint: str) -> bool:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            return hashlib.sha256(self._encoded(fingerprint)).hexdigest() == fingerprint
        return False

    def _write(self, path: Path, content: bytes) -> None:
        writing = self._folder / WRITING  # of an earlier one that was killed there is one file at most
        writing.unlink(missing_ok=True)
        with contextlib.ExitStack() as unless_written:
            unless_written.callback(writing.unlink, missing_ok=True)  # on a full disk every byte is wanted
            with open(writing, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o640)) as file:
                os.fchmod(file.fileno(), 0o640)  # whatever the umask; the group is the folder's
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            writing.rename(path)
            unless_written.pop_all()
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _drop_beyond(self, in_force: Collection[str]) -> Iterator[str]:
        kept, lists = sorted(self._kept(SUFFIX)), {one: size for _, size, one in self._kept(LIST_SUFFIX)}
        size_bytes, count = sum(size for _, size, _ in kept) + sum(lists.values()), len(kept)
        if count <= self._limit and size_bytes <= self._limit_bytes:
            return
        users = Counter(sha256 for _, _, fingerprint in kept for sha256 in self._lists_of(fingerprint))
        size_bytes -= self._drop_lists(lists, set(lists) - set(users))
        for _, size, fingerprint in kept:
            if count <= self._limit and size_bytes <= self._limit_bytes:
                return
            if fingerprint not in in_force:
                users.subtract(used := self._lists_of(fingerprint))
                self._path(fingerprint).unlink(missing_ok=True)
                size_bytes -= size + self._drop_lists(lists, {sha256 for sha256 in used if not users[sha256]})
                count -= 1
                yield fingerprint

    def _drop_lists(self, sizes: dict[str, int], unused: Collection[str]) -> int:
        """How many bytes that gave."""
        for sha256 in unused:
            self._list_path(sha256).unlink(missing_ok=True)
        return sum(sizes.get(sha256, 0) for sha256 in unused)

    def _lists_of(self, fingerprint: str) -> frozenset[str]:
        """The lists that a version refers to; none where it cannot be read."""
        with contextlib.suppress(OSError, EOFError, zlib.error, msgspec.MsgspecError):
            used = {one.sha256 for one in msgspec.json.decode(self._encoded(fingerprint), type=_Uses).lists}
            return frozenset(filter(FINGERPRINT.fullmatch, used))
        return frozenset()

    def _kept(self, suffix: str) -> Iterator[tuple[int, int, str]]:
        """When each was loaded last, how long it is, and which it is."""
        for entry in os.scandir(self._folder):
            fingerprint = entry.name.removesuffix(suffix)
            if entry.name.endswith(suffix) and FINGERPRINT.fullmatch(fingerprint):
                found = entry.stat(follow_symlinks=False)
                yield found.st_mtime_ns, found.st_size, fingerprint


def _whole(path: Path) -> bytes:
    """Raises OSError, EOFError, zlib.error."""
    with gzip.open(path) as file:
        content = file.read(WHOLE_LIMIT_BYTES + 1)
    if len(content) > WHOLE_LIMIT_BYTES:
        raise OSError(f"it unpacks to more than {WHOLE_LIMIT_BYTES} bytes")
    return content
