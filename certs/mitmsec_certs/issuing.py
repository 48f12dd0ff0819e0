"""The issuing CA as it lies in a folder: its key and its certificates, which have to belong together.

The key is in clear, its owner's alone, or sealed: encrypted (PKCS #8, AES-256) under a secret of 256 random bits that
the operating system keeps and hands out at each start (mitmsec.service.sealing). Or it is in a token, and the file says
in which and holds its PIN, in clear or sealed (mitmsec_certs.kept_token).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mitmsec_certs import ca_folder, kept_token
from mitmsec_certs.authority import Authority, CaKey
from mitmsec_certs.ca_folder import KEY, PEM, Certificates

SEALED_MARK = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def authority_in(folder: Path, public: Certificates, secret: bytes | None = None) -> Authority:
    """The authority of the CA in `folder`, whose public half is `public`. Raises KeystoreRefused."""
    key = private_key(folder / KEY, secret)
    line = (public.issuing, *public.above, public.root)
    try:
        for below, issuer in zip(line, (*line[1:], public.root), strict=True):
            below.verify_directly_issued_by(issuer)
        return Authority(key, public.issuing, line[1:])
    except (ValueError, TypeError, InvalidSignature) as error:
        reason = str(error) or "a signature is wrong"
        raise ca_folder.refused(folder, f"the files do not belong together ({reason})") from None


def private_key(path: Path, secret: bytes | None = None) -> CaKey:
    """The key in `path`, which nobody else may be able to read, or that it names in a token. Raises KeystoreRefused."""
    if (named := kept_token.reference(path, secret)) is not None:
        return kept_token.opened(path, named, secret)
    pem = ca_folder.content(path, private=True)
    is_sealed = SEALED_MARK in pem
    if is_sealed and secret is None:
        raise ca_folder.refused(path, "sealed, and what opens it was not brought")
    try:
        key = serialization.load_pem_private_key(pem, password=secret if is_sealed else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "sealed under another secret, or damaged" if is_sealed else "not a private key"
        raise ca_folder.refused(path, what) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ca_folder.refused(path, "neither an elliptic curve key nor one for RSA")
    return key


def is_sealed(data: bytes) -> bool:
    """Whether what is kept in a key's file as `data` is worth nothing without its secret."""
    return SEALED_MARK in data or kept_token.is_sealed(data)


def write_key(path: Path, key: CaKey, secret: bytes | None = None) -> None:
    """`key` as it is kept: sealed where there is a `secret`. Raises OSError."""
    encryption = serialization.NoEncryption() if secret is None else serialization.BestAvailableEncryption(secret)
    ca_folder.write(path, key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption), 0o600)


def reseal(path: Path, old: bytes | None, new: bytes | None) -> None:
    """What is kept in `path` is sealed under `new`, or in clear for None. Raises KeystoreRefused, OSError."""
    if (named := kept_token.reference(path, old)) is not None:
        return kept_token.write(path, named, new)
    write_key(path, private_key(path, old), new)
