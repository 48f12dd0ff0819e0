"""The roots that stores are to trust: the CA's, and while another one waits to take over, that one's too."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from mitmsec_certs import ca_folder
from mitmsec_certs.ca_folder import NEXT
from mitmsec_certs.truststore.plan import Root


def roots_of(ca: Path) -> list[Root]:
    """Those of the CA in the folder `ca`; none where there is no CA yet. Raises KeystoreRefused.

    Not the one before it, whose leaves end of themselves: that is only on its way out.
    """
    folders = [folder for folder in (ca, ca / NEXT) if ca_folder.is_complete(folder)]
    roots = [_of(ca_folder.certificates(folder).root) for folder in folders]
    return list(dict.fromkeys(roots))


def root_of(pem: bytes) -> Root:
    """Raises ValueError unless `pem` is one certificate."""
    (certificate,) = x509.load_pem_x509_certificates(pem)
    return _of(certificate)


def _of(certificate: x509.Certificate) -> Root:
    return Root(
        pem=certificate.public_bytes(Encoding.PEM).decode(),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        subject=certificate.subject.rfc4514_string(),
        not_after=certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
