"""The CA on disk: made once, read by the signer alone.

    STATE/ca/  lock          flock: whoever comes first makes the CA, the others read it
               issuing.key   PKCS #8, 0600, the signer's own user          ─┐
               issuing.pem   P-256, signed by the root                      ├─ written in this order, each by
               root.pem      P-384; its presence says that all is there    ─┘  temporary file, fsync, rename
               retired/      roots of CAs that have ended

The root's key never exists in the process that keeps the issuing key: a forked child makes it, signs both certificates,
answers with them and is gone, and the kernel clears its pages before anybody else gets them. That is as destroyed as a
key can be from Python. What a crash left half made was never announced to anybody and is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec_certs.authority import Authority, make_issuing, make_root, serial_of, validity_of
from mitmsec_certs.profile import DAY_S, ca_profiles

ROOT, ISSUING, KEY, LOCK, RETIRED = "root.pem", "issuing.pem", "issuing.key", "lock", "retired"
FILE_LIMIT_BYTES = 64 * 1024
ENDS_SOON_S = 14 * DAY_S
PEM = serialization.Encoding.PEM

type RootKeySource = Callable[[], ec.EllipticCurvePrivateKey]


class KeystoreRefused(Exception):
    """The CA's files are not as they must be. The text says which one, why, and what to do next."""


class Keystore:
    """An open CA: what the signer needs and what others may know."""

    def __init__(self, authority: Authority, root: x509.Certificate, issuing: x509.Certificate, created: bool) -> None:
        self.authority = authority
        self.root_pem = root.public_bytes(PEM).decode()
        self.issuing_pem = issuing.public_bytes(PEM).decode()
        self.root_subject = root.subject.rfc4514_string()
        self.root_sha256 = root.fingerprint(hashes.SHA256()).hex()
        self.root_not_after_s = validity_of(root).not_after_s
        self.created = created  # by this call

    def ends_soon(self, now_s: int) -> bool:
        """Leaves get shorter than usual soon, and within two weeks there are none."""
        return self.authority.validity.not_after_s - now_s < ENDS_SOON_S


def open_keystore(folder: Path, host: str, now_s: int, *, new_root_key: RootKeySource | None = None) -> Keystore:
    """Read the CA in `folder`, or make it. One that has ended is retired first: nobody can trust it any longer.

    Raises KeystoreRefused for files that others can read or that do not belong together, OSError for a broken disk.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_private_folder(folder)
    with _locked(folder):
        created = False
        if (folder / ROOT).exists() and _ended(folder, now_s):
            _retire(folder)
        if not (folder / ROOT).exists():
            _create(folder, host, now_s, new_root_key or _p384)
            created = True
        return _load(folder, now_s, created)


# --- making -----------------------------------------------------------------------------------------------------------
def _create(folder: Path, host: str, now_s: int, new_root_key: RootKeySource) -> None:
    for leftover in folder.glob("*.new"):
        leftover.unlink()
    key = ec.generate_private_key(ec.SECP256R1())
    root, issuing = _in_child(lambda: _ceremony(key.public_key(), host, now_s, new_root_key))
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / KEY, private, 0o600)
    _write(folder / ISSUING, issuing, 0o644)
    _write(folder / ROOT, root, 0o644)


def _ceremony(public_key: ec.EllipticCurvePublicKey, host: str, now_s: int, new_root_key: RootKeySource) -> list[bytes]:
    """Root and issuing certificate as PEM. Runs in the child; the root's key ends with it."""
    date = datetime.fromtimestamp(now_s, UTC).date().isoformat()
    root_profile, issuing_profile = ca_profiles(host, secrets.token_hex(4), date, now_s)
    root_key = new_root_key()
    root = make_root(root_profile, root_key, serial_of(secrets.token_bytes(16)))
    issuing = make_issuing(issuing_profile, root, root_key, public_key, serial_of(secrets.token_bytes(16)))
    return [root.public_bytes(PEM), issuing.public_bytes(PEM)]


def _p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _in_child(work: Callable[[], list[bytes]]) -> list[bytes]:
    """Run `work` in a forked process that ends with it. Raises OSError when the child fails."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            with open(theirs, "wb") as answer:
                answer.write(b"\0".join(work()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # no cleanup of the parent's: its loop and sockets are not ours
    os.close(theirs)
    with open(ours, "rb") as answer:
        parts = answer.read(2 * FILE_LIMIT_BYTES).split(b"\0")
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise OSError("the process that makes the root key failed")
    return parts


def _write(path: Path, data: bytes, mode: int) -> None:
    """All of `data` or nothing, on disk when this returns."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    _sync(path.parent)


def _retire(folder: Path) -> None:
    """Keep the root's certificate, so that whoever trusted it can still find out which one it was; drop the key."""
    retired = folder / RETIRED
    retired.mkdir(mode=0o700, exist_ok=True)
    serial = x509.load_pem_x509_certificate(_read(folder / ROOT)).serial_number
    (folder / KEY).unlink(missing_ok=True)
    (folder / ISSUING).unlink(missing_ok=True)
    (folder / ROOT).rename(retired / f"{serial:032x}.pem")
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading ----------------------------------------------------------------------------------------------------------
def _load(folder: Path, now_s: int, created: bool) -> Keystore:
    root, issuing = _certificate(folder / ROOT), _certificate(folder / ISSUING)
    if now_s < validity_of(issuing).not_before_s:
        began = issuing.not_valid_before_utc.isoformat()
        raise KeystoreRefused(f"{folder / ISSUING} is valid only from {began}. Set this machine's clock right")
    try:
        root.verify_directly_issued_by(root)
        issuing.verify_directly_issued_by(root)
        authority = Authority(_private_key(folder / KEY), issuing)
    except (ValueError, TypeError, InvalidSignature) as error:
        reason = str(error) or "a signature is wrong"
        raise _refused(folder, f"the files do not belong together ({reason})") from None
    return Keystore(authority, root, issuing, created)


def _ended(folder: Path, now_s: int) -> bool:
    return now_s > validity_of(_certificate(folder / ROOT)).not_after_s


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except (ValueError, x509.InvalidVersion) as error:
        raise _refused(path, f"not a certificate ({error})") from None


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path, private=True), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _refused(path, "not an unencrypted private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _refused(path, "not an elliptic curve key")
    return key


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(path, os.strerror(error.errno or 0)) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "not a regular file")
        if private:
            _require_private(path, status)
        return file.read(FILE_LIMIT_BYTES)


def _require_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _refused(path, f"owned by uid {status.st_uid}, not by {os.geteuid()}")
    if status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise _refused(path, f"mode {mode}: others can read the key, so it is a secret no more")


def _require_private_folder(folder: Path) -> None:
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(folder, "not a folder")
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        what = f"{folder}: owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise KeystoreRefused(f"{what}: others could put a CA of theirs there. Make it the signer's own, mode 0700")


def _refused(path: Path, reason: str) -> KeystoreRefused:
    return KeystoreRefused(f"{path}: {reason}. `mitmsec clean --purge` removes this CA; the next start makes a new one")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
