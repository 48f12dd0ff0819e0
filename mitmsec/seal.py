"""The key that signs a log's checkpoints (mitmsec.audit.checkpoint): made once, kept beside the log, its owner's alone.

    STATE/log/checkpoint.key    PRIVATE+KEY+NAME+HINT+KEY, as other tools of transparency logs write theirs; 0600

It proves nothing against whoever is root here, who can read it: what it proves, it proves to somebody who keeps
checkpoints and the public half elsewhere. A key that is lost is replaced by another one, which says so itself: nobody
takes its checkpoints for the old one's. So it is with a log that begins anew.
"""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mitmsec.audit.checkpoint import ED25519, KEY_BYTES, LogKey

FILE_NAME = "checkpoint.key"
ORIGIN = "mitmsec.log"
FILE_LIMIT_BYTES = 4096
_PREFIX = "PRIVATE+KEY+"


class LogKeyRefused(Exception):
    """The key's file is not as it must be; the text says why, and what to do next."""


class LogSigner:
    """Signs as the log `key.name`."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.key = LogKey(name, self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(message)

    def checks(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Whether another key, or this one, has made that signature."""
        return checks(public, message, signature)


def open_log_signer(folder: Path, *, makes_another: bool = False) -> LogSigner:
    """That of the log in `folder`; a new one where it has none, or another is wanted. Raises LogKeyRefused, OSError."""
    path = folder / FILE_NAME
    if makes_another and os.path.lexists(path):
        path.rename(path.with_name(f"{FILE_NAME}.{os.urandom(4).hex()}"))  # whose log may only have been moved away
    if not os.path.lexists(path):
        _make(path)
    text = _private_text(path)
    name, _, rest = text.removeprefix(_PREFIX).partition("+")
    hint, _, encoded = rest.partition("+")
    try:
        key = base64.b64decode(encoded, validate=True)
        if not text.startswith(_PREFIX) or key[:1] != ED25519 or len(key) != 1 + KEY_BYTES:
            raise ValueError
        signer = LogSigner(name, key[1:])
        if LogKey.parse(str(signer.key)).hint.hex() != hint:
            raise ValueError
    except ValueError:
        raise LogKeyRefused(f"{path}: it is no key of a log{_REMEDY}") from None
    return signer


def checks(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether it is a signature of `message` under that public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private_text(path: Path) -> str:
    """Raises LogKeyRefused for what others could have read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise LogKeyRefused(f"{path}: {os.strerror(error.errno or 0)}{_REMEDY}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            found = f"owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            raise LogKeyRefused(f"{path}: {found}: it is not the recorder's alone, so it is a secret no more{_REMEDY}")
        return file.read(FILE_LIMIT_BYTES).decode("ascii", "replace").strip()


def _make(path: Path) -> None:
    """All of it or nothing, on disk when this returns. Raises OSError."""
    seed, name = os.urandom(KEY_BYTES), f"{ORIGIN}/{os.urandom(8).hex()}"
    hint = LogSigner(name, seed).key.hint.hex()
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # of somebody who was killed
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(f"{_PREFIX}{name}+{hint}+{base64.b64encode(ED25519 + seed).decode()}\n".encode())
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)


_REMEDY = (
    ". Move it out of the way, and the next start makes another one: checkpoints of before are then checked with the"
    " key that they were signed with"
)
