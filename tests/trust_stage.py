"""Trees with stores in them for the tests of truststore: roots, a Debian tree of its own, and a copy of the machine.

`in_copy(story)` runs `story` in a child with a mount namespace of its own, in which /etc, /usr, /var and the homes are
overlays whose upper layer is in memory: the real tools change what looks like the machine, and that keeps nothing. Few
of Debian's authorities are trusted there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.truststore import tree
from mitmsec_certs.truststore.found import Home, stores
from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.journal import Journal
from mitmsec_certs.truststore.keeper import Keeper
from mitmsec_certs.truststore.plan import Root, Store, StoreName
from mitmsec_certs.truststore.root import root_of

COPIED = ("/etc", "/usr", "/var", "/home", "/root", "/opt")
NO_COPY = 77
FEW = 5
NOW = "2026-01-02T03:04:05Z"
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def new_root() -> Root:
    """The root of a CA that nobody has seen before."""
    with tempfile.TemporaryDirectory() as folder:
        return root_of(open_keystore(Path(folder), "machine.example", int(time.time())).root_pem.encode())


@cache
def some_root() -> Root:
    return new_root()


@cache
def _authorities() -> tuple[Root, ...]:
    return new_root(), new_root(), new_root()


def keeper_of(folder: Path, host: Host | None = None) -> tuple[Keeper, Journal]:
    journal = Journal(folder)
    return Keeper(journal, host or Host(), lambda: NOW), journal


def debian_tree(prefix: Path) -> Store:
    """A tree in which the real update-ca-certificates has put three authorities into effect, and Java is not."""
    if shutil.which("update-ca-certificates") is None:
        pytest.skip("update-ca-certificates is missing (Debian package ca-certificates)")
    authorities = prefix / "usr/share/ca-certificates/some"
    for folder in (authorities, prefix / "usr/local/share/ca-certificates", prefix / "etc/ssl/certs"):
        folder.mkdir(parents=True)
    (prefix / "etc/ca-certificates/update.d").mkdir(parents=True)
    for number, authority in enumerate(_authorities()):
        (authorities / f"{number}.crt").write_text(authority.pem)
    (prefix / "etc/ca-certificates.conf").write_text("".join(f"some/{number}.crt\n" for number in range(3)))
    (store,) = [one for one in stores([], str(prefix)) if one.name is StoreName.SYSTEM]
    update(store)
    return store


def update(store: Store) -> None:
    """As an administrator of the tree would do it."""
    from mitmsec_certs.truststore.plans import plan_of

    Host().perform(store, plan_of(store, some_root()).adding[1])


def nss_home(home: Path, *profiles: str, password: str = "") -> Home:
    """A home with databases in these folders, as their programs make them."""
    if shutil.which("certutil") is None:
        pytest.skip("certutil is missing (Debian package libnss3-tools)")
    for profile in profiles:
        (home / profile).mkdir(parents=True)
        (home / "pw").write_text(password + "\n")
        there = ["-d", f"sql:{home / profile}", "-f", str(home / "pw")]
        subprocess.run(["certutil", "-N", *there], check=True, capture_output=True)
    return Home(os.getuid(), "tester", str(home))


def all_of(*paths: str | Path) -> dict[str, tree.Node]:
    """Everything below these, to be compared."""
    return tree.look(map(str, paths))


# --- a copy of the machine --------------------------------------------------------------------------------------------
def in_copy(story: Callable[[], None]) -> None:
    """Run `story` in a copy of the machine; what it raises fails the test."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            status = NO_COPY
            _copy()
            status = 1
            story()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-30_000:])
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == NO_COPY:
        pytest.skip(f"no copy of the machine can be made here: {told.splitlines()[-1]}")
    if status:
        pytest.fail(told or f"the story ended with {status}", pytrace=False)


def _copy() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _succeeded(libc.unshare(CLONE_NEWNS))
    _succeeded(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    layers = Path(tempfile.mkdtemp())
    _succeeded(libc.mount(b"none", bytes(layers), b"tmpfs", 0, b"mode=0755"))
    for number, folder in enumerate(folder for folder in COPIED if os.path.isdir(folder)):
        upper, work = layers / f"{number}u", layers / f"{number}w"
        upper.mkdir()
        work.mkdir()
        shutil.copystat(folder, upper)
        options = f"lowerdir={folder},upperdir={upper},workdir={work}".encode()
        _succeeded(libc.mount(b"overlay", folder.encode(), b"overlay", 0, options))
    _with_few_authorities()


def _with_few_authorities() -> None:
    """As a machine on which an administrator trusts few of Debian's: its tools take seconds for all of them."""
    conf, certs, listed = Path("/etc/ca-certificates.conf"), Path("/etc/ssl/certs"), "/usr/share/ca-certificates/"
    if not conf.exists():
        return
    names = [line for line in conf.read_text().split("\n") if line and line[0] not in "#!"]
    kept = [name for name in names if os.path.exists(listed + name)][:FEW]
    conf.write_text("".join(f"{name}\n" for name in kept))
    targets = {listed + name for name in names} - {listed + name for name in kept}
    links = [path for path in certs.iterdir() if path.is_symlink() and os.path.realpath(path) in targets]
    for path in links:
        path.unlink()
    bundle = certs / "ca-certificates.crt"
    bundle.write_text("".join(Path(listed + name).read_text().rstrip() + "\n" for name in kept))


def _succeeded(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "no mount namespace with overlays here")


@contextlib.contextmanager
def looks_the_same(*paths: str | Path) -> Iterator[None]:
    """What lies there is the same after the body as before, byte for byte."""
    before = all_of(*paths)
    yield
    after = all_of(*paths)
    differs = {path: (before.get(path), after.get(path)) for path in {*before, *after}}
    differs = {path: pair for path, pair in differs.items() if pair[0] != pair[1]}
    assert not differs, differs
