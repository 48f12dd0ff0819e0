"""What anybody may know of a CA, as plain values: for people, for JSON, for the audit log."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mitmsec.core.model import Value
from mitmsec_certs import ca_folder, succession
from mitmsec_certs.authority import validity_of
from mitmsec_certs.ca_folder import KEY, NEXT, SEAL, CaKind, Certificates, KeystoreRefused
from mitmsec_certs.constraint_extension import constraints_of
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.issuing import is_sealed


class CertificateFacts(Value, frozen=True):
    """One CA's certificate. Times are RFC 3339, UTC; `sha256` and `serial` are hex."""

    subject: str
    serial: str
    sha256: str
    not_before: str
    not_after: str
    path_length: int | None
    permitted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


class CaFacts(Value, frozen=True):
    """A CA. `above`: what lies between the issuing CA and the root. `trusted`: whom new commands trust (SHA-256)."""

    kind: CaKind
    root: CertificateFacts
    issuing: CertificateFacts
    above: tuple[CertificateFacts, ...] = ()
    root_file: str = ""
    next: CaFacts | None = None
    trusted: tuple[str, ...] = ()
    is_sealed: bool = False
    asks: bool = False  # a request was made, and waits for its answer
    token: str = ""  # the PKCS #11 URI of the issuing key, where that is in a token


def facts(folder: Path, now_s: int) -> CaFacts | None:
    """Of the CA in `folder`; None where there is none yet. Raises KeystoreRefused."""
    if not ca_folder.is_complete(folder):
        return None
    following = folder / NEXT
    trusted = tuple(_sha256(root) for root in succession.trusted(folder, now_s))
    waiting = _facts(ca_folder.certificates(following)) if ca_folder.is_complete(following) else None
    found = _facts(ca_folder.certificates(folder), trusted, waiting)
    asks = waiting is None and (following / KEY).exists()
    is_sealed = (folder / SEAL).exists() and not _is_in_clear(folder)
    return msgspec.structs.replace(found, is_sealed=is_sealed, asks=asks)


def _is_in_clear(folder: Path) -> bool:
    """Whether a key is, though there is a seal: who sealed it was killed. Who may not look is told what is usual."""
    for path in (folder / KEY, folder / NEXT / KEY):
        with contextlib.suppress(KeystoreRefused):
            if not is_sealed(ca_folder.content(path)):
                return True
    return False


def limits(folder: Path) -> tuple[Constraints, ...]:
    """For which names the CA in `folder` may speak: every one of these has to allow it. Raises KeystoreRefused."""
    public = ca_folder.certificates(folder)
    return tuple(constraints_of(ca) for ca in (public.issuing, *public.above, public.root))


def facts_of(pem: bytes) -> CertificateFacts:
    """Of the first certificate in `pem`, which is one of ours."""
    return _of(x509.load_pem_x509_certificate(pem))


def _facts(public: Certificates, trusted: tuple[str, ...] = (), following: CaFacts | None = None) -> CaFacts:
    try:
        return CaFacts(
            kind=public.about.kind,
            root=_of(public.root),
            issuing=_of(public.issuing),
            above=tuple(map(_of, public.above)),
            root_file=public.about.root_file,
            token=public.about.token,
            next=following,
            trusted=trusted,
        )
    except ValueError as error:
        raise KeystoreRefused(f"the CA's certificates cannot be read: {error}") from None


def _of(certificate: x509.Certificate) -> CertificateFacts:
    validity = validity_of(certificate)
    limit = constraints_of(certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        serial=f"{certificate.serial_number:032x}",
        sha256=_sha256(certificate),
        not_before=_time(validity.not_before_s),
        not_after=_time(validity.not_after_s),
        path_length=basic.path_length,
        permitted=limit.permitted,
        excluded=limit.excluded,
    )


def _sha256(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
