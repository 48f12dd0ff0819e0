"""ML-KEM-768, as far as a hybrid key exchange needs it."""

from __future__ import annotations

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from mitmsec_certs import key_encapsulation
from mitmsec_certs.key_encapsulation import CIPHERTEXT_BYTES, encapsulation


def test_both_sides_have_one_secret() -> None:
    one = encapsulation()
    assert one is not None
    assert len(one.public) == 1184
    secret, ciphertext = MLKEM768PublicKey.from_public_bytes(one.public).encapsulate()
    assert one.shared(ciphertext) == secret
    assert one.shared(bytes(CIPHERTEXT_BYTES)) != secret
    with pytest.raises(ValueError, match="no ciphertext"):
        one.shared(ciphertext[:-1])
    other = encapsulation()
    assert other is not None
    assert other.public != one.public


def test_an_openssl_without_it_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        @staticmethod
        def generate() -> None:
            raise UnsupportedAlgorithm("ML-KEM")

    monkeypatch.setattr(key_encapsulation, "MLKEM768PrivateKey", Without)
    assert encapsulation() is None
