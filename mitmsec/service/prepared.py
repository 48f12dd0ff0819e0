"""What inspectors look for, compiled before workers start, and kept for the next time: STATE/compiled/NAME-KEY.

    policy names `secrets` ──► kept for these rules, this Hyperscan, this processor? ── yes ─► read: some milliseconds
    or `yara`                  (of `yara`: for the operator's rules, this yara-x; handed to scanners, not to workers)
                                       no ── compile: a second ─► keep it ──┐
                                                                            └─► behind the packed policy ─► workers

A worker may write nothing and has better things to do; so whoever loads the policy compiles, before anything waits for
it. What is kept is run as code: it is read only from a folder and a file that are ours and that nobody else may write
to, and only where its SHA-256 is right, which tells a file that a full disk has cut, or that was made for another key.
Anything else is made anew. Several may do so at a time: each writes a file of its own, and the last to finish is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata, resources
from pathlib import Path

import msgspec

from mitmsec.core.inspection import SCANS
from mitmsec.core.policy import Policy
from mitmsec.service.joining import made
from mitmsec.service.state import State
from mitmsec_addons.registry import PREPARED, prepare
from mitmsec_addons.yara_rules import RuleFile, compiled

KEPT_LIMIT = 4  # of each inspector: rules of versions before this one are nobody's
YARA_SOURCE = "yara_rules.py"  # how they are compiled
HASH_BYTES = 32
WRITING = "writing"  # the beginning of a name
KILLED_S = 3600.0  # what is older is of one that was killed while it wrote
_CPUINFO = Path("/proc/cpuinfo")


def prepared_for(policy: Policy, state: State, rules: Sequence[RuleFile] = ()) -> dict[str, bytes]:
    """For the inspectors that `policy` names, by name; `rules` are the files that it names for `yara`.

    Raises CannotRun where `state` cannot be used, RulesRefused where they do not compile.
    """
    makers = {name: (_key(name), partial(prepare, name)) for name, _ in policy.inspectors if name in PREPARED}
    if policy.scans:
        makers[SCANS] = (_key_of(rules), partial(compiled, rules))
    if not makers:
        return {}
    made(state)
    return {name: kept_or_made(state.compiled, name, key, make) for name, (key, make) in makers.items()}


def kept_or_made(folder: Path, name: str, key: str, make: Callable[[], bytes]) -> bytes:
    """What is kept in `folder` under that key, or what `make` gives, kept if there is room."""
    with _opened(folder) as descriptor:
        if descriptor is not None and (content := _read(descriptor, f"{name}-{key}")) is not None:
            return content
        content = make()
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk: it is made again the next time
                _write(descriptor, f"{name}-{key}", content)
                _drop_old(descriptor, name)
        return content


def _key(name: str) -> str:
    """Changes with whatever changes what is prepared."""
    return _hash(b"".join(map(_source, PREPARED[name])), "hyperscan")


def _key_of(rules: Sequence[RuleFile]) -> str:
    """Likewise, of the operator's rules."""
    return _hash(_source(YARA_SOURCE) + msgspec.json.encode(rules), "yara-x")


def _source(file: str) -> bytes:
    return resources.files("mitmsec_addons").joinpath(file).read_bytes()


def _hash(sources: bytes, package: str) -> str:
    """Of `sources`, as `package` compiles them on this machine."""
    machine = "\n".join([_version(package), platform.machine(), platform.processor(), *_features()])
    return hashlib.sha256(sources + machine.encode()).hexdigest()


def _version(package: str) -> str:
    """Without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _features() -> list[str]:
    """What this processor can do, as Linux tells it."""
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text().splitlines()
        return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return []


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """None: it is not there, or not ours alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield descriptor if _is_ours(os.fstat(descriptor)) else None
    finally:
        os.close(descriptor)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(folder: int, name: str) -> bytes | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _is_ours(found):
            return None
        content = file.read()
        os.utime(descriptor)
    digest, content = content[:HASH_BYTES], content[HASH_BYTES:]
    return content if _digest(name, content) == digest else None


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _write(folder: int, name: str, content: bytes) -> None:
    writing = f"{WRITING}-{os.urandom(8).hex()}"
    descriptor = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_digest(name, content) + content)
        os.rename(writing, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(writing, dir_fd=folder)
        raise


def _drop_old(folder: int, name: str) -> None:
    entries = {entry: os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime for entry in os.listdir(folder)}
    kept = sorted((entry for entry in entries if entry.startswith(f"{name}-")), key=entries.__getitem__)
    killed = [entry for entry in entries if entry.startswith(WRITING) and entries[entry] < time.time() - KILLED_S]
    for entry in [*kept[:-KEPT_LIMIT], *killed]:
        os.unlink(entry, dir_fd=folder)
