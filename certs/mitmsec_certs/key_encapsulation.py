"""ML-KEM-768 (FIPS 203): the half of a hybrid key exchange that OpenSSL makes by itself, and aioquic has not."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

CIPHERTEXT_BYTES = 1088


class KeyEncapsulation:
    """A key for one handshake. Raises UnsupportedAlgorithm where this OpenSSL has none."""

    def __init__(self) -> None:
        self._private = MLKEM768PrivateKey.generate()

    @property
    def public(self) -> bytes:
        """1,184 bytes, for whoever is to answer."""
        return self._private.public_key().public_bytes_raw()

    def shared(self, ciphertext: bytes) -> bytes:
        """The secret in the answer, 32 bytes. Raises ValueError for one of another size; any other gives a secret, be
        it one that nobody else has.
        """
        if len(ciphertext) != CIPHERTEXT_BYTES:
            raise ValueError("no ciphertext of ML-KEM-768")
        return self._private.decapsulate(ciphertext)


def encapsulation() -> KeyEncapsulation | None:
    """A new key; None where this OpenSSL has no ML-KEM."""
    try:
        return KeyEncapsulation()
    except UnsupportedAlgorithm:
        return None
