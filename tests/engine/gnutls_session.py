"""GnuTLS through its C interface, because it still has RC4 and 3DES: one side of one connection, verifying nothing."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

_SERVER, _CLIENT, _PEM, _CERTIFICATE = 1, 2, 1, 1  # GNUTLS_SERVER, GNUTLS_CLIENT, GNUTLS_X509_FMT_PEM, GNUTLS_CRD_…
_SIZE_BYTES = 1 << 14


class _Datum(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_uint))


@cache
def library() -> Any:
    """None where it is not installed."""
    try:
        return ctypes.CDLL("libgnutls.so.30")
    except OSError:
        return None


class GnutlsSession:
    """After the handshake."""

    def __init__(self, session: ctypes.c_void_p) -> None:
        self._session = session

    def recv(self) -> bytes:
        """b"" at the end. Raises ConnectionError."""
        buffer = ctypes.create_string_buffer(_SIZE_BYTES)
        size_bytes = _done("gnutls_record_recv", self._session, buffer, ctypes.c_size_t(_SIZE_BYTES))
        return buffer.raw[:size_bytes]

    def sendall(self, data: bytes) -> None:
        """At most one record. Raises ConnectionError."""
        assert _done("gnutls_record_send", self._session, data, ctypes.c_size_t(len(data))) == len(data)


@contextlib.contextmanager
def gnutls_session(
    sock: socket.socket, priority: str, patience_s: float, chain_pem: bytes = b"", key_pem: bytes = b""
) -> Iterator[GnutlsSession]:
    """A server's side where there is a chain, else a client's. Raises ConnectionError if the handshake fails."""
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(patience_s), 0))
    session, credentials = ctypes.c_void_p(), ctypes.c_void_p()
    with contextlib.ExitStack() as stack:
        _done("gnutls_certificate_allocate_credentials", ctypes.byref(credentials))
        stack.callback(library().gnutls_certificate_free_credentials, credentials)
        if chain_pem:
            chain, key = (ctypes.byref(_Datum(pem, len(pem))) for pem in (chain_pem, key_pem))
            _done("gnutls_certificate_set_x509_key_mem", credentials, chain, key, _PEM)
        _done("gnutls_init", ctypes.byref(session), _SERVER if chain_pem else _CLIENT)
        stack.callback(library().gnutls_deinit, session)
        _done("gnutls_priority_set_direct", session, priority.encode(), None)
        _done("gnutls_credentials_set", session, _CERTIFICATE, credentials)
        library().gnutls_transport_set_int2(session, sock.fileno(), sock.fileno())
        _shake_hands(session)
        yield GnutlsSession(session)
        _done("gnutls_bye", session, 1)  # GNUTLS_SHUT_WR


def _shake_hands(session: ctypes.c_void_p) -> None:
    """GnuTLS leaves it to its caller to tell the peer what was wrong."""
    if error := library().gnutls_handshake(session):
        library().gnutls_alert_send_appropriate(session, error)
        raise ConnectionError(f"the handshake: {error}")


def _done(function: str, *arguments: Any) -> int:
    result: int = getattr(library(), function)(*arguments)
    if result < 0:
        raise ConnectionError(f"{function}: {result}")
    return result
