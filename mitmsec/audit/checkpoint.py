"""Signed tree heads: which events a log had, as tools of transparency logs read it (C2SP signed-note, tlog-checkpoint).

    mitmsec.log/5f0c9a…                                  the origin: which log
    70000                                                its size
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=         its root (merkle)

    — mitmsec.log/5f0c9a… Az3grl…                        by whom: a hint at the key, and the Ed25519 signature

Keys and signatures are made and checked elsewhere: here they are bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable

from mitmsec.audit.merkle import HASH_BYTES
from mitmsec.core.model import Value

ED25519 = b"\x01"
KEY_BYTES, SIGNATURE_BYTES, HINT_BYTES = 32, 64, 4
NOTE_LIMIT_BYTES = 65_536
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")

type Sign = Callable[[bytes], bytes]
type Checks = Callable[[bytes, bytes, bytes], bool]
"""Whether, under a public key, of a message, a signature is one."""


class Untrue(ValueError):
    """A note is no checkpoint, or not one that the key has signed; the text says which."""


class LogKey(Value, frozen=True):
    """Whose signatures a log's checkpoints carry. As text: NAME+HINT+KEY, what other tools call a verifier key."""

    name: str
    public: bytes

    @property
    def hint(self) -> bytes:
        """Tells keys of one name apart."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:HINT_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.hint.hex()}+{_encoded(ED25519 + self.public)}"

    @classmethod
    def parse(cls, text: str) -> LogKey:
        """Raises ValueError."""
        name, _, rest = text.strip().partition("+")
        hint, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if not _NAME.fullmatch(name) or key[:1] != ED25519 or len(key) != 1 + KEY_BYTES:
            raise ValueError("a log's key is NAME+HINT+KEY, of Ed25519")
        made = cls(name, key[1:])
        if made.hint.hex() != hint:
            raise ValueError(f"the hint {hint!r} is not that of this key: something in it has been changed")
        return made


class Checkpoint(Value, frozen=True):
    """The first `size` events of the log `origin` have this root."""

    origin: str
    size: int
    root: bytes

    def body(self) -> bytes:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{_encoded(self.root)}\n".encode()

    def signed(self, key: LogKey, sign: Sign) -> str:
        """As a note."""
        signature = _encoded(key.hint + sign(self.body()))
        return f"{self.body().decode()}\n— {key.name} {signature}\n"


def opened(note: str, key: LogKey, checks: Checks) -> Checkpoint:
    """The checkpoint in a note, if `key` has signed it. Raises Untrue. Other signatures may stand beside."""
    body, blank, lines = note.partition("\n\n")
    if len(note.encode()) > NOTE_LIMIT_BYTES or not blank or not lines.endswith("\n"):
        raise Untrue("it is no signed note")
    signatures = [signature for line in lines[:-1].split("\n") if (signature := _signature(line, key)) is not None]
    if not signatures:
        raise Untrue(f"it has no signature of {key.name} by this key")
    checkpoint = parsed(body + "\n")
    if not all(checks(key.public, checkpoint.body(), signature) for signature in signatures):
        raise Untrue(f"the signature of {key.name} is not of this text: it was changed, or made up")
    return checkpoint


def said_by(note: str) -> Checkpoint:
    """What a signed note says, whoever signed it. Raises Untrue, also for one that could not be one of ours."""
    body, blank, lines = note.partition("\n\n")
    if not blank or any(not line.isprintable() for line in lines.split("\n")):
        raise Untrue("it is no signed note")
    return parsed(body + "\n")


def parsed(body: str) -> Checkpoint:
    """What a note says, whoever signed it. Raises Untrue."""
    lines = body.split("\n")
    if len(lines) != 4 or lines[3] or not _NAME.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):
        raise Untrue("it is no checkpoint: a name, a size and a root, each on a line of its own")
    try:
        root = _decoded(lines[2])
    except ValueError as error:
        raise Untrue(f"its root is none: {error}") from error
    if len(root) != HASH_BYTES:
        raise Untrue(f"its root has {len(root)} bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def _signature(line: str, key: LogKey) -> bytes | None:
    """By this key, or by somebody else's."""
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—" or not name or not encoded:
        raise Untrue("a line of its signatures is none")
    try:
        signature = _decoded(encoded)
    except ValueError as error:
        raise Untrue(f"a signature is none: {error}") from error
    if name != key.name or signature[:HINT_BYTES] != key.hint:
        return None
    return signature[HINT_BYTES:]


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    """Of base64 in the one spelling that `_encoded` writes. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if _encoded(data) != text:
        raise ValueError("not base64 as it is written")
    return data
