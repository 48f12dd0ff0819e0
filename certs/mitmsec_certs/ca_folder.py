"""The files of a CA: which there are, that nobody else can have written or read them, and how they are written.

    STATE/ca/  lock          flock: whoever changes the CA, or makes the first one
               issuing.key   PKCS #8 or a key in a token, 0600, the signer's ─┐
               issuing.pem   the issuing CA, what is above it, the root's CRL ├─ written in this order, each by
               about.json    which kind of CA, and what an operator chose     │  temporary file, fsync, rename
               root.pem      the anchor; its presence says that all is there ─┘
               next/         the same four, of a CA that is being made or waits
               seal.cred     what opens a sealed key, as the operating system keeps it
               modules.json  root's: the PKCS #11 modules that the signer may load
               retired/      roots of CAs that were replaced

Certificates may be read by anybody, keys by their owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mitmsec.core.model import Value

ROOT, ISSUING, KEY, ABOUT, LOCK = "root.pem", "issuing.pem", "issuing.key", "about.json", "lock"
SEAL = "seal.cred"
NEXT, RETIRED = "next", "retired"
FOREIGN_ENDING = ".foreign.pem"  # of a retired root that is somebody else's
FILE_LIMIT_BYTES = 64 * 1024
PEM = serialization.Encoding.PEM


class KeystoreRefused(Exception):
    """The CA's files are not as they must be. The text says which one, why, and what to do next."""


class CaKind(StrEnum):
    """Where a CA comes from."""

    AUTOMATIC = "automatic"  # made on first use; its root's key is destroyed
    IMPORTED = "imported"  # below somebody else's root
    OWN = "own"  # `ca init`: the root's key is kept offline


class About(Value, frozen=True):
    """What the certificates do not say. A CA without it is an automatic one."""

    kind: CaKind = CaKind.AUTOMATIC
    made_s: int = 0
    root_file: str = ""  # where the root's key was written to; it should be there no more
    token: str = ""  # the PKCS #11 URI of the issuing key, where that is in a token


class Certificates(Value, frozen=True):
    """The public half of a CA. `above` are those between the issuing CA and the root, the nearest first."""

    root: x509.Certificate
    issuing: x509.Certificate
    above: tuple[x509.Certificate, ...]
    about: About
    root_list: x509.CertificateRevocationList | None = None


def certificates(folder: Path) -> Certificates:
    """Raises KeystoreRefused, also where there is no CA."""
    issuing, *above = _chain(folder / ISSUING)
    root, about = certificate(folder / ROOT), about_of(folder)
    revoked = _list(folder / ISSUING)
    return Certificates(root=root, issuing=issuing, above=tuple(above), about=about, root_list=revoked)


def is_complete(folder: Path) -> bool:
    return (folder / ROOT).exists()


def about_of(folder: Path) -> About:
    """Raises KeystoreRefused."""
    if not (folder / ABOUT).exists():
        return About()
    try:
        return msgspec.json.decode(content(folder / ABOUT), type=About)
    except msgspec.MsgspecError as error:
        raise refused(folder / ABOUT, f"it says nothing that can be read ({error})") from None


def certificate(path: Path) -> x509.Certificate:
    """The one in `path`. Raises KeystoreRefused."""
    return _chain(path)[0]


def _list(path: Path) -> x509.CertificateRevocationList | None:
    pem = content(path)
    if b"-----BEGIN X509 CRL-----" not in pem:
        return None
    try:
        return x509.load_pem_x509_crl(pem)
    except ValueError as error:
        raise refused(path, f"the revocation list in it cannot be read ({error})") from None


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content(path))
    except (ValueError, x509.InvalidVersion):
        raise refused(path, "not a certificate") from None


# --- reading ----------------------------------------------------------------------------------------------------------
def content(path: Path, *, private: bool = False, roots: bool = False) -> bytes:
    """Raises KeystoreRefused for what is no regular file, or `private` and can be read by others, or has to be `roots`
    and could have been written by others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise refused(path, os.strerror(error.errno or 0)) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refused(path, "not a regular file")
        if private:
            _require_private(path, status)
        if roots and (status.st_uid != 0 or status.st_mode & 0o022):
            raise refused(
                path, f"owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}, not root's alone"
            )
        return file.read(FILE_LIMIT_BYTES)


def _require_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise refused(path, f"owned by uid {status.st_uid}, not by {os.geteuid()}")
    if status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise refused(path, f"mode {mode}: others can read the key, so it is a secret no more")


def require_private_folder(folder: Path) -> None:
    """Raises KeystoreRefused for one that others could write to."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise refused(folder, "not a folder")
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        what = f"{folder}: owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise KeystoreRefused(f"{what}: others could put a CA of theirs there. Make it the signer's own, mode 0711")


def refused(path: Path, reason: str) -> KeystoreRefused:
    """With what to do next."""
    remedy = "`mitmsec clean --purge-ca` removes this CA; the next start makes a new one, as `mitmsec ca init` does"
    return KeystoreRefused(f"{path}: {reason}. {remedy}")


# --- writing ----------------------------------------------------------------------------------------------------------
def write(path: Path, data: bytes, mode: int) -> None:
    """All of `data` or nothing, on disk when this returns. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # of somebody who was killed, or found the disk full
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    sync(path.parent)


def write_public(folder: Path, chain: list[bytes], about: About, root: bytes) -> None:
    """All but the key; with the root, which comes last, `folder` is complete. PEM."""
    write(folder / ISSUING, b"".join(chain), 0o644)
    write(folder / ABOUT, msgspec.json.encode(about), 0o644)
    write(folder / ROOT, root, 0o644)


def clear(folder: Path) -> None:
    """Remove what a CA that is not complete has left, or one that nobody wants: first what says that it is complete."""
    for name in (ROOT, KEY, ISSUING, ABOUT):
        (folder / name).unlink(missing_ok=True)
    for leftover in folder.glob("*.new"):
        leftover.unlink()


def retire(folder: Path, now_s: int) -> None:
    """Keep the root's certificate, so that whoever trusted it can still find out which one it was; drop the key.

    The file's time says when that was.
    """
    retired = folder / RETIRED
    retired.mkdir(mode=0o755, exist_ok=True)
    serial = certificate(folder / ROOT).serial_number
    ending = FOREIGN_ENDING if about_of(folder).kind is CaKind.IMPORTED else ".pem"
    os.utime(folder / ROOT, (now_s, now_s))
    (folder / ROOT).rename(retired / f"{serial:032x}{ending}")  # first: what is left is no CA any more
    for name in (KEY, ISSUING, ABOUT):
        (folder / name).unlink(missing_ok=True)
    sync(folder)


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else changes the CA in `folder` meanwhile."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
