"""AES-128 for whoever reads QUIC's first packets, and answers them: a `SealingCipher` (mitmsec.core.quic_answers)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG_BYTES = 16


class Aes128:
    """Without a state of its own."""

    def block(self, key: bytes, block: bytes) -> bytes:
        """One block of 16 bytes, encrypted."""
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # RFC 9001 §5.4.3, one block
        return encryptor.update(block) + encryptor.finalize()

    def sealed(self, key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
        """AES-128-GCM, its tag behind it."""
        return AESGCM(key).encrypt(nonce, plain, associated)

    def opened(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        """AES-128-GCM; None where the tag, the last 16 bytes of `sealed`, is another's."""
        if len(sealed) < TAG_BYTES:
            return None
        try:
            return AESGCM(key).decrypt(nonce, sealed, associated)
        except InvalidTag:
            return None
