"""OpenSSL over memory buffers. All that the engine takes from pyOpenSSL's private parts is here and in `chains`.

    ciphertext ──► feed ──► handshake | read ──► plaintext
    ciphertext ◄── outgoing ◄── handshake | write ◄── plaintext

pyOpenSSL reports "nothing more to read" with an exception for each read; on the path of every request that costs more
than the decryption, so reading goes straight to SSL_read and asks for the error only where there is one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from OpenSSL import SSL, crypto
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate  # each look into that module takes 3 us

from mitmsec.core.origin_proof import Proof
from mitmsec.engine import alerts
from mitmsec.engine.strength import Strength, classical_of

_lib: Any = SSL._lib  # type: ignore[attr-defined]
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]
_SIZE_BYTES = 1 << 16
_BUFFER: Any = _ffi.new("char[]", _SIZE_BYTES)  # one loop, one thread: nobody else is between a read and its copy
_VIEW: Any = _ffi.buffer(_BUFFER, _SIZE_BYTES)
HOST_FLAGS = _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
KEYS_LIMIT = 4  # of leaves: two kinds, and those of the day before
CERTIFICATES_LIMIT = 256  # origins' certificates that need not be read again
NAMES_LIMIT = 1024  # likewise, origins' names
_ASKED = b"SSLv3/TLS read server certificate request"  # OpenSSL's word for that state, of TLS 1.3 too
_ALERT_SENT = 0x4008  # SSL_CB_WRITE_ALERT


class TlsFailed(Exception):
    """The TLS protocol broke. `alert` is what the peer sent, None where the error was found on our side."""

    def __init__(self, reason: str, alert: int | None = None) -> None:
        super().__init__(reason)
        self.alert = alert


def size_bytes(session: SSL.Session) -> int:
    """What `session` holds, the peer's certificates included."""
    raw: Any = session
    size: int = _lib.i2d_SSL_SESSION(raw._session, _ffi.NULL)
    return size


class TlsSession:
    """One side of one TLS connection, without a socket."""

    __slots__ = (
        "_begun",
        "_certificate",
        "_connection",
        "_finished",
        "_from",
        "_into",
        "_is_shaken",
        "_ssl",
        "_strength",
        "closed",
        "is_asked",
        "owner",
        "verify_errors",
        "wanted_alpn",
    )

    def __init__(self, connection: SSL.Connection) -> None:
        raw: Any = connection
        self._connection = connection
        self._ssl, self._into, self._from = raw._ssl, raw._into_ssl, raw._from_ssl
        self._begun: SSL.Session | None = None  # as the handshake left it
        self._certificate: tuple[str, int] | None = None  # the peer's, once it was asked for
        self._is_shaken = False
        self._strength: Strength | None = None
        self._finished = False  # we have sent ours
        self.closed = False  # the peer has sent close_notify
        self.is_asked = False  # the server wants a client's certificate, or another handshake
        self.verify_errors: list[int] = []  # X509_V_ERR_…, filled while the origin's certificate is checked
        self.wanted_alpn = b""  # a server agrees to this protocol only
        self.owner: Any = None  # whom key log lines belong to
        connection.set_app_data(self)

    def feed(self, data: bytes) -> None:
        """Ciphertext from the peer."""
        _lib.BIO_write(self._into, data, len(data))

    def handshake(self) -> bool:
        """Whether the handshake is complete. Raises TlsFailed; `outgoing` is due to the peer in every case."""
        _lib.ERR_clear_error()  # what another connection left would be taken for this one's (SSL_get_error(3))
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.SysCallError as error:
            raise TlsFailed(f"unexpected end: {error}") from None
        except SSL.Error as error:
            raise _failed(error) from None
        self._is_shaken = True
        return True

    def offer(self, session: SSL.Session) -> None:
        """Before the handshake: have the server resume `session` if it likes."""
        self._connection.set_session(session)

    def expect_ticket(self) -> None:
        """After the handshake: from here on a new session is one that the server has sent a ticket for."""
        if self.version == "TLSv1.3":
            self._begun = self._connection.get_session()

    def ticket(self) -> SSL.Session | None:
        """The session of the last ticket since `expect_ticket` (RFC 8446 §4.6.1)."""
        if self._begun is None:
            return None
        session = self._connection.get_session()
        raw: Any = session
        before: Any = self._begun
        return session if raw is not None and raw._session != before._session else None

    def outgoing(self) -> bytes:
        """Ciphertext for the peer; b"" where there is none."""
        size = _lib.BIO_read(self._from, _BUFFER, _SIZE_BYTES)
        if size < _SIZE_BYTES:
            return _VIEW[:size] if size > 0 else b""
        pieces = [_VIEW[:size]]
        while (size := _lib.BIO_read(self._from, _BUFFER, _SIZE_BYTES)) > 0:
            pieces.append(_VIEW[:size])
        return b"".join(pieces)

    def read(self) -> bytes:
        """The plaintext that what was fed completes. Sets `closed`. Raises TlsFailed."""
        ssl, pieces = self._ssl, []
        _lib.ERR_clear_error()
        while (size := _lib.SSL_read(ssl, _BUFFER, _SIZE_BYTES)) > 0:
            pieces.append(_VIEW[:size])
        error = _lib.SSL_get_error(ssl, size)
        if error == _lib.SSL_ERROR_ZERO_RETURN:
            self.closed = True
        elif error != _lib.SSL_ERROR_WANT_READ and not pieces:
            raise self._error(size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes) -> None:
        """Plaintext for the peer. What is written after the peer's or our own end is dropped. Raises TlsFailed."""
        if self._finished:
            return
        try:
            self._connection.sendall(data)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return
        except SSL.Error as error:
            raise _failed(error) from None

    def close_notify(self) -> None:
        """Say that nothing more will be written (RFC 8446 §6.1)."""
        self._finished = True
        try:
            self._connection.shutdown()
        except SSL.Error:
            return  # in the middle of a handshake there is nothing to close

    def _error(self, size: int) -> TlsFailed:
        try:
            raw: Any = self._connection
            raw._raise_ssl_error(self._ssl, size)
        except SSL.SysCallError as error:
            return TlsFailed(f"unexpected end: {error}")
        except SSL.Error as error:
            return _failed(error)
        return TlsFailed("unknown error")

    def release(self) -> None:
        """Nothing more will be asked of this session; its memory goes without waiting for the collector."""
        self._connection.set_app_data(None)
        self.owner = None

    # -- facts ---------------------------------------------------------------------------------------------------------
    @property
    def alpn(self) -> bytes:
        """b"" where none was agreed."""
        return self._connection.get_alpn_proto_negotiated()

    @property
    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str | None:
        return self._connection.get_cipher_name()

    @property
    def strength(self) -> Strength:
        """What was agreed so far: all of it after the handshake."""
        if self._strength is not None:
            return self._strength
        bits, group = self._connection.get_cipher_bits(), self._connection.get_group_name()
        found = Strength(version=self.version, cipher_bits=bits or 0, group=group)
        if self._is_shaken:
            self._strength = found
        return found

    @property
    def resumed(self) -> bool:
        return bool(_lib.SSL_session_reused(self._ssl))

    def peer_certificate(self) -> tuple[str, int] | None:
        """SHA-256 (hex) and notAfter (Unix seconds) of the peer's certificate."""
        if self._certificate is None:
            certificate = self._connection.get_peer_certificate()
            if certificate is not None:
                self._certificate = _print_and_end(dump_certificate(FILETYPE_ASN1, certificate))
        return self._certificate

    def proof(self) -> Proof:
        """What the origin showed, once the handshake is complete."""
        chain = self._connection.get_verified_chain() or ()
        ders = tuple(dump_certificate(FILETYPE_ASN1, one) for one in chain)
        return Proof(errors=tuple(self.verify_errors), chain=ders, staple=self._staple(), resumed=self.resumed)

    def _staple(self) -> bytes:
        place = _ffi.new("unsigned char **")
        size = _lib.SSL_get_tlsext_status_ocsp_resp(self._ssl, place)
        return bytes(_ffi.buffer(place[0], size)) if size > 0 else b""


@lru_cache(CERTIFICATES_LIMIT)
def _print_and_end(der: bytes) -> tuple[str, int]:
    return hashlib.sha256(der).hexdigest(), not_after_s(certificate(der))


def note_requests(context: SSL.Context) -> None:
    """Have its sessions, a client's sides, note whether the server asks for a certificate (`is_asked`).

    In TLS 1.2 it may also begin another handshake for that, which is refused: what it meant to ask is not heard then.
    """
    raw: Any = context
    _lib.SSL_CTX_set_info_callback(raw._context, _NOTE)


def _note(ssl: Any, where: int, result: int) -> None:
    """pyOpenSSL's own callback would look the connection up at each of a handshake's 16 steps."""
    is_refused = where == _ALERT_SENT and result & 0xFF == alerts.NO_RENEGOTIATION
    if is_refused or _ffi.string(_lib.SSL_state_string_long(ssl)) == _ASKED:
        connections: Any = SSL.Connection
        session = connections._reverse_mapping[ssl].get_app_data()
        if session is not None:
            session.is_asked = True


_NOTE: Any = _ffi.callback("void (*)(const SSL *, int, int)", _note)  # for as long as any context may call it


def client_side(
    context: SSL.Context,
    name: str,
    *,
    sni: bool,
    alpn: Sequence[bytes],
    tls12: bool,
    groups: str = "",
    verified: bool = False,
) -> TlsSession:
    """A client's side towards `name`, for whom the certificate has to be if `verified`.

    Without `tls12`, TLS 1.3 or nothing. `groups` to offer, empty: OpenSSL's own. Raises TlsFailed where it has none.
    """
    connection = SSL.Connection(context, None)
    session = TlsSession(connection)
    if groups:
        restrict_groups(connection, groups)
    if not tls12:
        connection.set_options(SSL.OP_NO_TLSv1_2)
    if sni:
        connection.set_tlsext_host_name(name.encode())
    if alpn:
        connection.set_alpn_protos(list(alpn))
    if verified:
        expect_peer(connection, name)
        connection.request_ocsp()
    connection.set_connect_state()
    return session


def restrict_groups(of: SSL.Connection | SSL.Context, groups: str) -> None:
    """Agree to these, as strength.GROUPS writes them, and to no others. Raises TlsFailed where OpenSSL has none."""
    raw: Any = of
    is_whole = isinstance(of, SSL.Context)
    set_list, at = (_lib.SSL_CTX_set1_curves_list, raw._context) if is_whole else (_lib.SSL_set1_curves_list, raw._ssl)
    for names in (groups, classical_of(groups)):
        if names and set_list(at, names.encode()) == 1:
            return
    _lib.ERR_clear_error()
    raise TlsFailed(f"OpenSSL has none of the groups {groups}", alerts.INSUFFICIENT_SECURITY)


def expect_peer(connection: SSL.Connection, name: str) -> None:
    """Have OpenSSL check that the peer's certificate is for `name`, a host name or an IP address."""
    raw: Any = connection
    param = _lib.SSL_get0_param(raw._ssl)
    _lib.X509_VERIFY_PARAM_set_hostflags(param, HOST_FLAGS)
    packed = packed_address(name)
    if packed is None:
        encoded = name.encode()
        accepted = _lib.X509_VERIFY_PARAM_set1_host(param, encoded, len(encoded))
    else:
        accepted = _lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed))
    if accepted != 1:
        raise ValueError(f"OpenSSL does not accept {name!r} as a peer's name")


@lru_cache(NAMES_LIMIT)
def packed_address(name: str) -> bytes | None:
    """An IP address, as in a certificate; None of a host name."""
    try:
        return ipaddress.ip_address(name).packed
    except ValueError:
        return None


@lru_cache(KEYS_LIMIT)
def private_key(der: bytes) -> Any:
    """A leaf's key (PKCS #8) as a context takes it; many leaves have the same. Raises ValueError."""
    try:
        return crypto.load_privatekey(crypto.FILETYPE_ASN1, der).to_cryptography_key()
    except crypto.Error as error:
        raise ValueError("not a private key") from error


def certificate(der: bytes) -> crypto.X509:
    """Raises ValueError."""
    try:
        return crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    except crypto.Error as error:
        raise ValueError("not a certificate") from error


def certificates_of_pem(pem: bytes) -> list[crypto.X509]:
    """All certificates of a bundle that OpenSSL can read."""
    found = []
    end = b"-----END CERTIFICATE-----"
    for block in pem.split(end)[:-1]:
        _, begin, body = block.rpartition(b"-----BEGIN CERTIFICATE-----")
        try:
            found.append(crypto.load_certificate(crypto.FILETYPE_PEM, begin + body + end))
        except crypto.Error:
            continue
    return found


def not_after_s(certificate: crypto.X509) -> int:
    """Unix seconds; now where the field cannot be read."""
    text = certificate.get_notAfter()
    try:
        return int(datetime.strptime((text or b"").decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return int(time.time())


def session_context(name: str) -> bytes:
    """A session id context that no two names share."""
    return hashlib.sha256(name.encode()).digest()


def _failed(error: SSL.Error) -> TlsFailed:
    details: Sequence[Any] = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    reasons = [str(detail[-1]) for detail in details if isinstance(detail, tuple) and detail]
    for reason in reasons:
        alert = alerts.received(reason)
        if alert is not None:
            return TlsFailed(reason, alert)
    return TlsFailed(reasons[-1] if reasons else "TLS error")
