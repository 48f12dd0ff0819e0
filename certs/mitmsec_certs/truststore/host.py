"""The machine that stores lie on: its files and its tools, with the rights of whoever owns the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import signal
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import assert_never

from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.truststore.plan import (
    Drop,
    Look,
    NssTable,
    PemFile,
    PemOutput,
    Plan,
    Put,
    Run,
    Step,
    Store,
    certificate_entry,
    nss_rows,
)
from mitmsec_certs.truststore.talk import TooMuch, talk
from mitmsec_certs.truststore.tree import replace
from mitmsec_certs.truststore.whose import changers

TOOL_DEADLINE_S = 120.0  # update-ca-certificates runs dpkg's triggers, on a busy machine
TOLD_BYTES = 400
PACKAGES = {"certutil": " (Debian: libnss3-tools, Fedora: nss-tools)"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ToolFailed(Exception):
    """A tool is missing, did not end, or says that it failed. The text names it and what it said."""


class Host:
    """This machine."""

    def perform(self, store: Store, step: Step) -> None:
        """Raises OSError, ToolFailed."""
        with rights_of(store.uid):
            match step:
                case Put(path=path, content=content, mode=mode):
                    replace(path, content.encode(), mode)
                case Drop(path=path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                case Run(argv=argv, stdin=stdin, tolerated=tolerated):
                    _run(argv, stdin, store, tolerated=tolerated)
                case _:
                    assert_never(step)

    def entries(self, store: Store, plan: Plan) -> frozenset[str]:
        """What the store trusts, as it is read back now. Raises OSError, ToolFailed."""
        with rights_of(store.uid):
            return frozenset().union(*(_seen(look, store) for look in plan.looks))

    def is_open(self, paths: Collection[str]) -> bool:
        """Whether a living process has one of the files `paths` open."""
        files = {(status.st_dev, status.st_ino) for path in paths for status in _status(path)}
        return bool(files) and any(
            (status.st_dev, status.st_ino) in files
            for entry in Path("/proc").glob("[0-9]*/fd/*")
            for status in _status(entry)
        )


@contextlib.contextmanager
def rights_of(uid: int) -> Iterator[None]:
    """Files are opened with the rights of `uid` in the body."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    (gid, _, name), groups = _account(uid), os.getgroups()
    os.setgroups(os.getgrouplist(name, gid) if name else [gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _account(uid: int) -> tuple[int, str, str]:
    """Group, home and name; of somebody whom nobody knows any more, nothing but the number."""
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        return user.pw_gid, user.pw_dir, user.pw_name
    return uid, "/", ""


def _status(path: str | Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        yield os.stat(path)


def _seen(look: Look, store: Store) -> frozenset[str]:
    match look:
        case PemFile(path=path):
            with contextlib.suppress(FileNotFoundError):
                return _certificates(Path(path).read_bytes())
            return frozenset()
        case PemOutput(argv=argv, tolerated=tolerated, part=part):
            return _certificates(_run(argv, "", store, tolerated=tolerated), part)
        case NssTable(argv=argv):
            return nss_rows(_run(argv, "", store).decode(errors="replace"))
        case _:
            assert_never(look)


def _certificates(pem: bytes, part: str = "") -> frozenset[str]:
    return frozenset(certificate_entry(hashlib.sha256(der).hexdigest(), part) for der in certificates_in(pem))


def _run(argv: tuple[str, ...], stdin: str, store: Store, *, tolerated: bool = False) -> bytes:
    """What a tool prints. It gets nothing of the caller's environment, which is not that of the store's owner."""
    gid, home, _ = _account(store.uid)
    _refuse_exchanged(argv[0], store.uid)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C", "HOME": home},
            cwd="/",
            close_fds=bool(store.uid),  # the journal's lock goes with root's tools; all else closes itself
            start_new_session=True,  # ^C is for us: we end it, and put back what it did
            user=store.uid if store.uid else None,
            group=gid if store.uid else None,
        )
    except FileNotFoundError:
        raise ToolFailed(f"{argv[0]} is not installed{PACKAGES.get(argv[0], '')}") from None
    output, errors = _ended(process, argv[0], stdin.encode())
    if process.returncode and not tolerated:
        said = (errors or output)[-TOLD_BYTES:].decode(errors="replace").split()
        raise ToolFailed(f"{argv[0]} ended with status {process.returncode}: {' '.join(said)}")
    return output


def _refuse_exchanged(program: str, uid: int) -> None:
    """A program that a path names may be no other user's by now. Raises ToolFailed."""
    if os.path.isabs(program):
        with contextlib.suppress(FileNotFoundError):
            owners = changers(program)
            if owners is None or not owners <= {0, os.geteuid(), uid}:
                raise ToolFailed(f"{program} is not run: others than its user and root could exchange it")


def _ended(process: subprocess.Popen[bytes], name: str, stdin: bytes) -> tuple[bytes, bytes]:
    try:
        return talk(process, stdin, TOOL_DEADLINE_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started too: nothing may write any more
        process.wait()
        if isinstance(error, TimeoutError):
            raise ToolFailed(f"{name} did not end within {TOOL_DEADLINE_S:.0f} s") from None
        if isinstance(error, TooMuch):
            raise ToolFailed(f"{name} says {error}") from None
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):  # of who has escaped nobody waits for the end
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
