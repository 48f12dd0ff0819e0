"""The log's keys: one signs checkpoints (mitmsec.audit.checkpoint), one wraps those of content (mitmsec.audit.vault).

    STATE/log/checkpoint.key    PRIVATE+KEY+NAME+HINT+KEY, as other tools of transparency logs write theirs; 0600
    STATE/log/content.key       CONTENT+KEY+ID+KEY, 256 bits of AES; 0600; content.key.* are earlier ones

Each is made once, kept beside the log, its owner's alone. The first proves nothing against whoever is root here, who
can read it: what it proves, it proves to somebody who keeps checkpoints and the public half elsewhere. A key that is
lost is replaced by another one, which says so itself: nobody takes its checkpoints for the old one's. So it is with a
log that begins anew. Without the second, all content whose key it has wrapped is lost.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from mitmsec.audit.checkpoint import ED25519, KEY_BYTES, LogKey
from mitmsec.audit.vault import Unopened

FILE_NAME = "checkpoint.key"
CONTENT_FILE_NAME = "content.key"
ORIGIN = "mitmsec.log"
FILE_LIMIT_BYTES = 4096
NONCE_BYTES = 12
_PREFIX = "PRIVATE+KEY+"
_CONTENT_PREFIX = "CONTENT+KEY+"


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
        _make(path, _new_signer())
    text = _private_text(path, _REMEDY)
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


class ContentSealer:
    """Encrypts each content under a key of its own (AES-256-GCM), which `key_id` wraps (RFC 3394)."""

    def __init__(self, keys: Mapping[str, bytes], key_id: str) -> None:
        """`keys` open, `key_id` of them seals."""
        self.key_id, self._keys = key_id, dict(keys)

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def sealed(self, clear: bytes, about: bytes) -> tuple[bytes, bytes]:
        """The ciphertext, a random nonce before it, bound to `about`; and its own key, wrapped."""
        own, nonce = AESGCM.generate_key(256), os.urandom(NONCE_BYTES)
        return nonce + AESGCM(own).encrypt(nonce, clear, about), aes_key_wrap(self._keys[self.key_id], own)

    def opened(self, key_id: str, key: bytes, sealed: bytes, about: bytes) -> bytes:
        """Raises Unopened."""
        if key_id not in self._keys:
            raise Unopened(f"its key is wrapped by another one, {key_id}, whose file is not there")
        try:
            own = aes_key_unwrap(self._keys[key_id], key)
            return AESGCM(own).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
        except (InvalidUnwrap, InvalidTag, ValueError):
            raise Unopened("it was changed, or is another event's") from None


def open_content_sealer(folder: Path) -> ContentSealer:
    """With the key in `folder`, made where there is none, and earlier ones. Raises LogKeyRefused, OSError."""
    path = folder / CONTENT_FILE_NAME
    if not os.path.lexists(path):
        key_id, key = os.urandom(8).hex(), os.urandom(KEY_BYTES)
        _make(path, f"{_CONTENT_PREFIX}{key_id}+{base64.b64encode(key).decode()}")
    newest, key = _content_key(path)
    earlier = [_content_key(other) for other in sorted(folder.glob(f"{CONTENT_FILE_NAME}.*")) if other.suffix != _NEW]
    return ContentSealer({**dict(earlier), newest: key}, newest)


def _content_key(path: Path) -> tuple[str, bytes]:
    text = _private_text(path, _CONTENT_REMEDY)
    key_id, _, encoded = text.removeprefix(_CONTENT_PREFIX).partition("+")
    try:
        key = base64.b64decode(encoded, validate=True)
        if not text.startswith(_CONTENT_PREFIX) or not key_id.isalnum() or len(key) != KEY_BYTES:
            raise ValueError
    except ValueError:
        raise LogKeyRefused(f"{path}: it is no key for content{_CONTENT_REMEDY}") from None
    return key_id, key


def checks(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether it is a signature of `message` under that public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private_text(path: Path, remedy: str) -> str:
    """Raises LogKeyRefused for what others could have read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise LogKeyRefused(f"{path}: {os.strerror(error.errno or 0)}{remedy}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            found = f"owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            raise LogKeyRefused(f"{path}: {found}: it is not the recorder's alone, so it is a secret no more{remedy}")
        return file.read(FILE_LIMIT_BYTES).decode("ascii", "replace").strip()


def _new_signer() -> str:
    seed, name = os.urandom(KEY_BYTES), f"{ORIGIN}/{os.urandom(8).hex()}"
    hint = LogSigner(name, seed).key.hint.hex()
    return f"{_PREFIX}{name}+{hint}+{base64.b64encode(ED25519 + seed).decode()}"


def _make(path: Path, text: str) -> None:
    """All of it or nothing, on disk when this returns. Raises OSError."""
    temporary = path.with_name(path.name + _NEW)
    temporary.unlink(missing_ok=True)  # of somebody who was killed
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(f"{text}\n".encode())
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_NEW = ".new"
_CONTENT_REMEDY = (
    ". Move it out of the way, and the next start makes another one: content whose key it has wrapped is not shown"
    " unless it lies beside it again, as content.key.1, say"
)
_REMEDY = (
    ". Move it out of the way, and the next start makes another one: checkpoints of before are then checked with the"
    " key that they were signed with"
)
