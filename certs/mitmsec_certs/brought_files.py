"""What an operator brings in files: certificates and perhaps their key, as PEM, DER or PKCS #12."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec.core.model import Value
from mitmsec_certs.authority import CaKey, spki_of
from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.ceremony import in_child
from mitmsec_certs.sub_ca import Unsuitable

CERTIFICATES_LIMIT = 100  # of one file
ANSWER_LIMIT_BYTES = 4 << 20
_KEY_MARK = b"PRIVATE KEY-----"
DER = serialization.Encoding.DER
_ENCRYPTED_MARKS = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")


class NeedsPassphrase(Exception):
    """The file is encrypted, and no passphrase, or another, was given."""


class Brought(Value, frozen=True):
    """What a file holds."""

    certificates: tuple[x509.Certificate, ...]
    key: CaKey | None = None

    @property
    def public_key(self) -> bytes | None:
        """The key's public half (SPKI, DER)."""
        return None if self.key is None else spki_of(self.key.public_key())


def brought(name: str, data: bytes, passphrase: str | None = None) -> Brought:
    """What the file `name` holds. Raises NeedsPassphrase, Unsuitable."""
    found = _read(name, data, passphrase)
    if len(found.certificates) > CERTIFICATES_LIMIT:
        raise Unsuitable(
            [f"{name} holds more than {CERTIFICATES_LIMIT} certificates: bring the CA's and those above it"]
        )
    return found


def _read(name: str, data: bytes, passphrase: str | None) -> Brought:
    if b"-----BEGIN " in data:
        return _from_pem(name, data, passphrase)
    try:
        return Brought((x509.load_der_x509_certificate(data),))
    except (ValueError, x509.InvalidVersion):
        return _from_pkcs12(name, data, passphrase)


def brought_apart(name: str, data: bytes, passphrase: str | None = None) -> Brought:
    """As `brought`, read by a process that ends with it and may take so much: files come from anywhere."""

    too_much = f"{name}: it takes too long, or too much memory, to be read"

    def work() -> list[bytes]:
        try:
            found = brought(name, data, passphrase)
        except NeedsPassphrase:
            return [_NEEDS]
        except Unsuitable as error:
            return [_UNSUITABLE, *(reason.encode() for reason in error.reasons)]
        except (InternalError, MemoryError):  # OpenSSL's word for what it got no memory for
            return [_UNSUITABLE, too_much.encode()]
        return [_key_der(found.key), *(one.public_bytes(DER) for one in found.certificates)]

    try:
        first, *others = in_child(work, answer_limit_bytes=ANSWER_LIMIT_BYTES)
    except OSError:
        raise Unsuitable([too_much]) from None
    match first:
        case b"passphrase":
            raise NeedsPassphrase(name)
        case b"unsuitable":
            raise Unsuitable([reason.decode() for reason in others])
        case _:
            key = _usable(name, serialization.load_der_private_key(first, None)) if first else None
            return Brought(tuple(map(x509.load_der_x509_certificate, others)), key)


_NEEDS, _UNSUITABLE = b"passphrase", b"unsuitable"


def _key_der(key: CaKey | None) -> bytes:
    clear = serialization.NoEncryption()
    return b"" if key is None else key.private_bytes(DER, serialization.PrivateFormat.PKCS8, clear)


def _from_pem(name: str, data: bytes, passphrase: str | None) -> Brought:
    try:
        certificates = tuple(x509.load_der_x509_certificate(der) for der in certificates_in(data))
    except (ValueError, x509.InvalidVersion) as error:
        raise Unsuitable([f"{name}: a certificate in it cannot be read: {error}"]) from None
    if _KEY_MARK not in data:
        return Brought(certificates)
    if any(mark in data for mark in _ENCRYPTED_MARKS) and passphrase is None:
        raise NeedsPassphrase(name)
    secret = passphrase.encode() if passphrase is not None and any(mark in data for mark in _ENCRYPTED_MARKS) else None
    try:
        key = serialization.load_pem_private_key(_key_block(data), secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if secret is not None:
            raise NeedsPassphrase(name) from None
        raise Unsuitable([f"{name}: the key in it cannot be read: {error}"]) from None
    return Brought(certificates, _usable(name, key))


def _key_block(data: bytes) -> bytes:
    """From the first key on: what stands before it would be taken for it."""
    before, mark, after = data.partition(_KEY_MARK)
    return before[before.rindex(b"-----BEGIN ") :] + mark + after


def _from_pkcs12(name: str, data: bytes, passphrase: str | None) -> Brought:
    secret = None if passphrase is None else passphrase.encode()
    try:
        key, first, others = pkcs12.load_key_and_certificates(data, secret)
    except (ValueError, UnsupportedAlgorithm) as error:
        if "password" in str(error).lower():
            raise NeedsPassphrase(name) from None
        raise Unsuitable([f"{name}: neither PEM, DER nor PKCS #12 that can be read"]) from None
    certificates = tuple(one for one in (first, *others) if one is not None)
    return Brought(certificates, None if key is None else _usable(name, key))


def _usable(name: str, key: PrivateKeyTypes) -> CaKey:
    if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        return key
    raise Unsuitable([f"{name}: the key in it is neither RSA nor of an elliptic curve"])
