"""TLS of services whose certificate and key are known, towards those who call them and towards the services themselves.

    peer ◄── the service's own certificate ── worker ── the peer's name, protocols and versions ──► service
                                                └─ shows it exactly this certificate? else the flow ends

The service's certificate is compared, byte by byte, and not verified: who has its key is whom the peer wants. No other
certificate would do, whatever root it has. What a worker cannot do is to pose as the peer: a service that asks for a
client's certificate ends the flow, for it would take the peer for somebody without one. One that would ask later, by
beginning another handshake, is refused that (RFC 5246 §7.2.2, no_renegotiation), which ends the flow as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from OpenSSL import SSL, crypto

from mitmsec.core.known_service import KnownService
from mitmsec.core.messages import Flaw
from mitmsec.core.model import Value
from mitmsec.engine import openssl
from mitmsec.engine.contexts import KeyLog, server_context
from mitmsec.engine.openssl import TlsSession


class OtherCertificate(Value, frozen=True):
    """The service showed another one than it should (mitmsec.engine.seams.Defect)."""

    text: str
    flaw: Flaw = Flaw.UNTRUSTED


class Service:
    """One service: contexts for both sides, made once."""

    def __init__(self, known: KnownService, key_pem: bytes, on_key_log: KeyLog | None = None) -> None:
        """Raises ValueError, SSL.Error, crypto.Error for what makes no service."""
        self._known = known
        private = crypto.load_privatekey(crypto.FILETYPE_PEM, key_pem, b"").to_cryptography_key()
        chain = [openssl.certificate(der) for der in known.chain]
        self.front = server_context(chain, private, known.name, on_key_log)
        """For those who call it."""
        self._back = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._back.set_min_proto_version(SSL.TLS1_2_VERSION)
        self._back.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        self._back.set_verify(SSL.VERIFY_NONE)
        self._back.set_options(SSL.OP_NO_RENEGOTIATION)  # in which TLS 1.2 may ask for a certificate, or show another
        openssl.note_requests(self._back)

    def session(self, name: str, *, sni: bool, alpn: Sequence[bytes], tls12: bool) -> TlsSession:
        """A client's side towards it, as of OriginContext."""
        return openssl.client_side(self._back, name, sni=sni, alpn=alpn, tls12=tls12)

    def defect(self, session: TlsSession) -> OtherCertificate | None:
        """After the handshake: what is wrong with the certificate that it showed."""
        shown = session.peer_certificate()
        if shown is not None and shown[0] == self._known.sha256:
            return None
        return OtherCertificate(text=f'the service showed another certificate than that of [[inbound]] "{self.name}"')

    @property
    def name(self) -> str:
        return self._known.name


class Services:
    """All whose keys this worker has, by name."""

    def __init__(self, known: Sequence[KnownService], keys_pem: bytes, on_key_log: KeyLog | None = None) -> None:
        """`keys_pem`: one key after the other, in the order of `known`. Raises as Service does."""
        self._services: dict[str, Service] = {}
        begin = 0
        for one in known if keys_pem else ():
            end = begin + one.key_bytes
            self._services[one.name] = Service(one, keys_pem[begin:end], on_key_log)
            begin = end

    def find(self, name: str) -> Service | None:
        return self._services.get(name)


def refusal(known: KnownService, key_pem: bytes) -> str | None:
    """Why TLS will not be served with this certificate and key, in OpenSSL's words; None: it will."""
    try:
        Service(known, key_pem)
    except (ValueError, SSL.Error, crypto.Error) as error:
        details = error.args[0] if error.args else ""
        return str(details[-1][-1]) if isinstance(details, list) and details else str(error)
    return None
