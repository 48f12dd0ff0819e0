"""A throw-away PKI for origins that we start ourselves: the demo's and the benchmark's. Nothing of it is ever trusted
by anybody who was not handed its root."""

from __future__ import annotations

import secrets
import ssl

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec.core.model import Value
from mitmsec_certs.authority import Authority, make_issuing, make_root, serial_of
from mitmsec_certs.profile import IssuingProfile, Name, RootProfile, Validity, leaf_profile

DAY_S = 86_400


class OriginPki(Value, frozen=True):
    """PEM, all of it: the root that clients trust, and for each name the server's chain and key."""

    root: bytes
    servers: dict[str, tuple[bytes, bytes]]


def origin_pki(label: str, names: tuple[str, ...], now_s: int) -> OriginPki:
    """A root and issuing CA called `label` and a server certificate for each of `names`, valid for a month."""
    validity = Validity(not_before_s=now_s - DAY_S, not_after_s=now_s + 30 * DAY_S)
    root_key, issuing_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    root = make_root(RootProfile(common_name=f"{label} root", validity=validity), root_key, _serial())
    profile = IssuingProfile(common_name=f"{label} CA", validity=validity)
    issuing = make_issuing(profile, root, root_key, issuing_key.public_key(), _serial())
    authority = Authority(issuing_key, issuing, has_list=False)
    servers = {}
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue(leaf_profile(Name.of(name), now_s, validity), key.public_key(), _serial())
        servers[name] = (b"".join(map(_pem, chain)), _key_pem(key))
    return OriginPki(root=root.public_bytes(serialization.Encoding.PEM), servers=servers)


def _serial() -> int:
    return serial_of(secrets.token_bytes(16))


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
