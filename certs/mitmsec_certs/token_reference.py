"""What `issuing.key` holds where the key is in a token: which key that is, and the PIN that opens it.

The PIN lies in clear, the signer's alone, or sealed (AES-256-GCM) under the secret that seals a key in a file. Once the
token has refused it, that is kept too: a signer that is started again and again must not use up the token's patience.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mitmsec.core.model import Value

MARK = b'{"pkcs11":'
NONCE_BYTES = 12
PIN_CHARACTERS = 255


class BadReference(ValueError):
    """It cannot be read; the text says why, and never quotes the PIN."""


class TokenReference(Value, frozen=True):
    """`uri`: mitmsec_certs.token_uri."""

    uri: str
    pin: str
    pin_refused: bool = False


class _Kept(Value, frozen=True):
    pkcs11: str
    pin: str = ""
    sealed_pin: bytes = b""
    pin_refused: bool = False


def is_reference(data: bytes) -> bool:
    return data.startswith(MARK)


def is_sealed(data: bytes) -> bool:
    """Whether the PIN in it is. Raises BadReference."""
    return bool(_kept(data).sealed_pin)


def pin_flaw(pin: str) -> str | None:
    """Why this cannot be a PIN; None where it can."""
    if not pin or len(pin) > PIN_CHARACTERS or not pin.isprintable():
        return f"a PIN has one to {PIN_CHARACTERS} printable characters"
    return None


def written(reference: TokenReference, secret: bytes | None) -> bytes:
    """As it is kept: the PIN sealed where there is a `secret`."""
    kept = _Kept(pkcs11=reference.uri, pin_refused=reference.pin_refused)
    if secret is None:
        return msgspec.json.encode(msgspec.structs.replace(kept, pin=reference.pin))
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = nonce + _cipher(secret).encrypt(nonce, reference.pin.encode(), reference.uri.encode())
    return msgspec.json.encode(msgspec.structs.replace(kept, sealed_pin=sealed))


def read(data: bytes, secret: bytes | None) -> TokenReference:
    """Raises BadReference."""
    kept = _kept(data)
    pin = kept.pin
    if kept.sealed_pin:
        if secret is None:
            raise BadReference("its PIN is sealed, and what opens it was not brought")
        pin = _opened(kept, secret)
    return TokenReference(uri=kept.pkcs11, pin=pin, pin_refused=kept.pin_refused)


def uri_of(data: bytes) -> str:
    """Which key it is; that is never sealed. Raises BadReference."""
    return _kept(data).pkcs11


def _kept(data: bytes) -> _Kept:
    try:
        return msgspec.json.decode(data, type=_Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BadReference("it names no key in a token that can be understood") from None


def _opened(kept: _Kept, secret: bytes) -> str:
    nonce, sealed = kept.sealed_pin[:NONCE_BYTES], kept.sealed_pin[NONCE_BYTES:]
    try:
        return _cipher(secret).decrypt(nonce, sealed, kept.pkcs11.encode()).decode()
    except (InvalidTag, ValueError):
        raise BadReference("its PIN is sealed under another secret, or damaged") from None


def _cipher(secret: bytes) -> AESGCM:
    return AESGCM(hashlib.sha256(secret).digest())
