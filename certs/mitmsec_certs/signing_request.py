"""The request by which an enterprise's CA is asked for an issuing CA: it says all that the answer should contain."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitmsec_certs.authority import CaKey, key_usage
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.constraint_extension import extension_of
from mitmsec_certs.constraints import Constraints


def signing_request(key: CaKey, common_name: str, constraints: Constraints) -> bytes:
    """PKCS #10 (PEM) for `key`: path length 0, serverAuth alone, and the name constraints."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    names = extension_of(constraints)
    if names is not None:
        builder = builder.add_extension(names, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)
