"""The key that signs a log's checkpoints (mitmsec.audit.checkpoint): made once, kept beside the log, its owner's alone.

    STATE/log/checkpoint.key    PRIVATE+KEY+NAME+HINT+KEY, as other tools of transparency logs write theirs; 0600

It proves nothing against whoever is root here, who can read it: what it proves, it proves to somebody who keeps
checkpoints and the public half elsewhere. A key that is lost is replaced by another one, which says so itself: nobody
takes its checkpoints for the old one's.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mitmsec.audit.checkpoint import ED25519, KEY_BYTES, LogKey
from mitmsec_certs import ca_folder
from mitmsec_certs.ca_folder import KeystoreRefused

FILE_NAME = "checkpoint.key"
ORIGIN = "mitmsec.log"
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


def open_log_signer(folder: Path) -> LogSigner:
    """That of the log in `folder`; a new one where it has none. Raises LogKeyRefused, OSError."""
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        _make(path)
    try:
        text = ca_folder.content(path, private=True).decode("ascii", "replace").strip()
    except KeystoreRefused as error:
        raise LogKeyRefused(str(error).partition(". ")[0] + _REMEDY) from None
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


def _make(path: Path) -> None:
    seed, name = os.urandom(KEY_BYTES), f"{ORIGIN}/{os.urandom(8).hex()}"
    hint = LogSigner(name, seed).key.hint.hex()
    text = f"{_PREFIX}{name}+{hint}+{base64.b64encode(ED25519 + seed).decode()}\n"
    ca_folder.write(path, text.encode(), 0o600)


_REMEDY = (
    ". Move it out of the way, and the next start makes another one: checkpoints of before are then checked with the"
    " key that they were signed with"
)
