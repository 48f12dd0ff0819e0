"""A trust store that Java reads, and the option that makes it do so.

Java listens to no variable about roots; the one thing that reaches every JVM of a command and its children is
`JAVA_TOOL_OPTIONS`, which makes each of them say so on stderr. So this is done only on request (`run --java`).
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

from mitmsec_certs.bundle import certificates_in

VARIABLE = "JAVA_TOOL_OPTIONS"
PASSWORD = "changeit"  # noqa: S105  the one that every Java tool tries; the content is public, the MAC proves nothing
_ROUNDS = 2048


def java_truststore(bundle_pem: bytes) -> bytes:
    """A PKCS #12 trust store (Java 8u301 and later) with the roots of a bundle. What cannot be parsed is left out."""
    # Named by their own digest: a store keeps one certificate for each alias.
    entries = [pkcs12.PKCS12Certificate(certificate, alias) for alias, certificate in _parsed(bundle_pem)]
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(PASSWORD.encode())
    )
    return pkcs12.serialize_java_truststore(entries, encryption)


def java_options(truststore_path: str) -> str:
    """What JAVA_TOOL_OPTIONS gets, after whatever the caller has in it, so that ours wins. The path may hold spaces.

    Raises ValueError for a path with both kinds of quotes, which the JVM cannot be told.
    """
    quote = '"' if '"' not in truststore_path else "'"
    if quote in truststore_path:
        raise ValueError(f"a path with both kinds of quotes cannot stand in {VARIABLE}: {truststore_path}")
    return " ".join(
        (
            f"{quote}-Djavax.net.ssl.trustStore={truststore_path}{quote}",
            "-Djavax.net.ssl.trustStoreType=PKCS12",
            f"-Djavax.net.ssl.trustStorePassword={PASSWORD}",
        )
    )


def _parsed(bundle_pem: bytes) -> list[tuple[bytes, x509.Certificate]]:
    found: list[tuple[bytes, x509.Certificate]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some old roots have serials that no new certificate may have
        for der in certificates_in(bundle_pem):
            with contextlib.suppress(ValueError, x509.InvalidVersion):
                certificate = x509.load_der_x509_certificate(der)
                found.append((hashlib.sha256(der).hexdigest().encode(), certificate))
    return found
