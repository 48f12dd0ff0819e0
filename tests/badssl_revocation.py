"""What issuers say about their certificates, made here: OCSP answers, revocation lists, timestamps of logs."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence

from badssl import ANSWER, Category, listening
from badssl_certificates import Certified
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import ObjectIdentifier
from OpenSSL import SSL, crypto

DAY = datetime.timedelta(days=1)
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def ocsp_answer(
    about: Certified,
    issuer: Certified,
    *,
    revoked: bool = False,
    unknown: bool = False,
    begun_days: float = -1,
    ends_days: float | None = 1,
    signer: Certified | None = None,
    enclosed: Sequence[Certified] = (),
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """An answer as DER, signed by the issuer unless `signer` does it."""
    by = signer or issuer
    status = ocsp.OCSPCertStatus.GOOD
    if revoked or unknown:
        status = ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.UNKNOWN
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=about.certificate,
        issuer=issuer.certificate,
        algorithm=algorithm or hashes.SHA256(),
        cert_status=status,
        this_update=now() + begun_days * DAY,
        next_update=None if ends_days is None else now() + ends_days * DAY,
        revocation_time=now() - 5 * DAY if revoked else None,
        revocation_reason=None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate)
    if enclosed:
        builder = builder.certificates([one.certificate for one in enclosed])
    made = builder.sign(by.key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


def revocation_list(
    issuer: Certified,
    *revoked: Certified,
    begun_days: float = -1,
    ends_days: float | None = 1,
    signer: Certified | None = None,
    more: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """A list as DER."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(now() + begun_days * DAY).next_update(now() + (ends_days or 1) * DAY)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now() - 2 * DAY).build())
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    return builder.sign((signer or issuer).key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def timestamps(*logs: int, at: datetime.datetime | None = None) -> tuple[x509.ExtensionType, bool]:
    """A certificate's list of signed timestamps (RFC 6962, 3.3), one of each log. Nobody can verify the signatures."""
    milliseconds = int((at or now() - DAY).timestamp() * 1000)
    stamps = b""
    for log in logs:
        signed = struct.pack(">BBH", 4, 3, 64) + secrets.token_bytes(64)
        stamp = b"\0" + bytes([log]) * 32 + struct.pack(">QH", milliseconds, 0) + signed
        stamps += struct.pack(">H", len(stamp)) + stamp
    listed = struct.pack(">H", len(stamps)) + stamps
    size = bytes((len(listed),)) if len(listed) < 128 else bytes((0x81, len(listed)))
    return x509.UnrecognizedExtension(SCT_LIST, b"\x04" + size + listed), False


@contextlib.contextmanager
def stapling_server(category: Category, staple: bytes) -> Iterator[int]:
    """A server that sends `staple` along; its port. (Python's ssl cannot.)"""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    first, *rest = category.chain
    context.use_certificate(first.certificate)
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, first.key_pem).to_cryptography_key())
    for one in rest:
        context.add_extra_chain_cert(one.certificate)
    context.set_ocsp_server_callback(lambda _connection, _data: staple)

    def answer(sock: socket.socket) -> None:
        with contextlib.suppress(SSL.Error):
            connection = SSL.Connection(context, sock)
            connection.set_accept_state()
            connection.do_handshake()
            connection.recv(4096)
            connection.sendall(ANSWER)
            connection.shutdown()

    with listening(answer) as port:
        yield port
