"""Content sealed to people, two of whom open it together (mitmsec.core.quarantine): the cryptography of it.

    content's key ─┬─ random half ── X25519, HKDF-SHA256, ChaCha20-Poly1305 ──► one of a pair
                   └─ the other ─────────────────────────────────────────────► the other of the pair
    pieces ── ChaCha20-Poly1305, nonce: number, and whether it is the last ──► the file

What seals forgets the key. A piece that is missing, exchanged or from another file does not open, nor does a file that
has lost its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mitmsec.core.quarantine import SEALED_BYTES, Header, Recipient, Share, pairs, preamble

KEY_BYTES = 32
_ONCE = bytes(12)  # the nonce of a key that seals one thing


class NotOpened(Exception):
    """It cannot be opened with these keys, or is not what was sealed; the text says which."""


class Sealing:
    """Seals for `recipients`."""

    def __init__(self, recipients: Sequence[Recipient]) -> None:
        self._recipients = tuple(recipients)

    def begin(self, item: str, content_bytes: int, *, is_whole: bool) -> SealedItem:
        """A new item, of which nobody has the key but this and any two of them."""
        return SealedItem(self._recipients, item, content_bytes, is_whole=is_whole)


class SealedItem:
    """One file. `preamble` goes first; then each piece, in order."""

    def __init__(self, recipients: tuple[Recipient, ...], item: str, content_bytes: int, *, is_whole: bool) -> None:
        ephemeral, key = X25519PrivateKey.generate(), os.urandom(KEY_BYTES)
        shares = []
        for first, second in pairs(len(recipients)):
            half = os.urandom(KEY_BYTES)
            halves = (half, _xor(half, key))
            sealed = [
                ChaCha20Poly1305(_wrapping(ephemeral, recipients[number].public, item, first, second)).encrypt(
                    _ONCE, one, None
                )
                for number, one in zip((first, second), halves, strict=True)
            ]
            shares.append(Share(first=first, second=second, for_first=sealed[0], for_second=sealed[1]))
        self.preamble = preamble(
            Header(
                item=item,
                recipients=recipients,
                ephemeral=ephemeral.public_key().public_bytes_raw(),
                shares=tuple(shares),
                content_bytes=content_bytes,
                is_whole=is_whole,
            )
        )
        self._cipher, self._bound, self._count = ChaCha20Poly1305(key), _hash(self.preamble), 0

    def sealed(self, piece: bytes, *, is_last: bool) -> bytes:
        """The next piece: PIECE_BYTES, but for the last one."""
        number, self._count = self._count, self._count + 1
        return self._cipher.encrypt(_nonce(number, is_last=is_last), piece, self._bound)


def opened_key(header: Header, privates: Sequence[bytes]) -> tuple[bytes, tuple[Recipient, Recipient]]:
    """The content's key, by two people's private keys (32 bytes each), and whose they are. Raises NotOpened.

    How they are called says the header, which the worker wrote; their keys are those that opened it.
    """
    by_public = {X25519PrivateKey.from_private_bytes(one).public_key().public_bytes_raw(): one for one in privates}
    held = {number: by_public[one.public] for number, one in enumerate(header.recipients) if one.public in by_public}
    for share in header.shares:
        if share.first in held and share.second in held and held[share.first] != held[share.second]:
            halves = (
                _unwrapped(header, share, held[share.first], share.for_first),
                _unwrapped(header, share, held[share.second], share.for_second),
            )
            if len(halves[0]) != KEY_BYTES or len(halves[1]) != KEY_BYTES:
                raise NotOpened("it is not what was sealed: its key's halves are damaged")
            return _xor(*halves), (header.recipients[share.first], header.recipients[share.second])
    have = ", ".join(header.recipients[number].name for number in held) or "nobody"
    wanted = ", ".join(one.name for one in header.recipients)
    raise NotOpened(f"the keys of two of {wanted} are wanted; these are those of {have}")


def opened_pieces(key: bytes, began: bytes, file: BinaryIO) -> Iterator[bytes]:
    """The plain pieces of a file that `began` with its preamble and stands behind it. Raises NotOpened."""
    cipher, bound, number = ChaCha20Poly1305(key), _hash(began), 0
    sealed = file.read(SEALED_BYTES)
    while True:
        ahead = file.read(SEALED_BYTES) if len(sealed) == SEALED_BYTES else b""
        try:
            yield cipher.decrypt(_nonce(number, is_last=not ahead), sealed, bound)
        except InvalidTag:
            raise NotOpened("it is not what was sealed: changed, or cut off") from None
        if not ahead:
            return
        sealed, number = ahead, number + 1


def new_key() -> tuple[bytes, bytes]:
    """A private key, as a file holds it (PEM), and the public one."""
    key = X25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, key.public_key().public_bytes_raw()


def private_in(pem: bytes) -> bytes:
    """The key that a file holds. Raises NotOpened."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise NotOpened("no private key of `mitmsec quarantine keys` is in it")
    return key.private_bytes_raw()


def _unwrapped(header: Header, share: Share, private: bytes, sealed: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(private)
    public = key.public_key().public_bytes_raw()
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(header.ephemeral))
        wrapping = _derived(shared, header.ephemeral + public, header.item, share.first, share.second)
        return ChaCha20Poly1305(wrapping).decrypt(_ONCE, sealed, None)
    except (InvalidTag, ValueError):
        raise NotOpened("it is not what was sealed: its key's halves are damaged") from None


def _wrapping(ephemeral: X25519PrivateKey, public: bytes, item: str, first: int, second: int) -> bytes:
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    return _derived(shared, ephemeral.public_key().public_bytes_raw() + public, item, first, second)


def _derived(shared: bytes, both: bytes, item: str, first: int, second: int) -> bytes:
    """One key for each half: who it is for is in `both`."""
    info = f"mitmsec quarantine 1 {first} {second} {item}".encode()
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=both, info=info).derive(shared)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11) + bytes([is_last])


def _xor(first: bytes, second: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(first, second, strict=True))


def _hash(content: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    return digest.finalize()
