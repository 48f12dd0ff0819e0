"""The keys of leaves: one of each kind for a run, made when it is first needed, another one each day.

The signer makes them and hands them out with the certificates, so that all workers of a run can use the same leaves,
and so that nobody can ask for a certificate for a key of theirs. No run has another's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.model import Value
from mitmsec_certs.authority import LeafKey, spki_of
from mitmsec_certs.profile import DAY_S

KEY_USE_S = DAY_S
RSA_BITS = 2048
RSA_EXPONENT = 65537

type PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class LeafKeyPair(Value, frozen=True):
    """`public_key` is SubjectPublicKeyInfo, `private_key` PKCS #8, both DER."""

    public: LeafKey
    public_key: bytes
    private_key: bytes
    made_s: int


def fresh(kind: LeafKeyKind) -> PrivateKey:
    """A new key. One for RSA takes a tenth of a second."""
    match kind:
        case LeafKeyKind.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case LeafKeyKind.RSA2048:
            return rsa.generate_private_key(RSA_EXPONENT, RSA_BITS)
        case _:
            assert_never(kind)


class LeafKeys:
    """Those of one run. Time is an argument, Unix seconds."""

    def __init__(self, make: Callable[[LeafKeyKind], PrivateKey] = fresh) -> None:
        self._make = make
        self._keys: dict[LeafKeyKind, LeafKeyPair] = {}

    def of(self, kind: LeafKeyKind, now_s: int) -> LeafKeyPair:
        """The key of today. A clock that was set back far makes another one."""
        known = self._keys.get(kind)
        if known is None or not -KEY_USE_S < now_s - known.made_s < KEY_USE_S:
            known = self._keys[kind] = _pair(self._make(kind), now_s)
        return known


def _pair(key: PrivateKey, now_s: int) -> LeafKeyPair:
    public = key.public_key()
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return LeafKeyPair(public=public, public_key=spki_of(public), private_key=private, made_s=now_s)
