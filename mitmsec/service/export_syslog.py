"""A syslog server behind TLS (RFC 5425): what it took, it was told to take in order, under its own certificate.

Syslog has no acknowledgement. What comes nearest is RFC 5425 §4.4: whoever gets a close_notify must answer with one.
So a connection is shut down before its events are called settled: the server's TLS has read all of them by then, and a
TCP connection that ends without a reset shows that no byte was left unread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mitmsec.core.model import Value
from mitmsec.service.export_delivery import Undelivered

DEFAULT_PORT = 6514
SCHEME = "syslog+tls://"
CONNECT_S, SEND_S, CLOSE_S = 10.0, 30.0, 10.0
POLL_S = 0.01
PIECE_BYTES = 65_536


class Unusable(Exception):
    """Roots or a client's certificate cannot be used; the text says which file and why."""


class Address(Value, frozen=True):
    """Where the server is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """syslog+tls://HOST[:PORT], an IPv6 address in brackets. Raises ValueError."""
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password)
        if not url.startswith(SCHEME) or not parts.hostname or not plain or parts.port == 0:
            raise ValueError(f"{url!r} is not {SCHEME}HOST:PORT")
        parts.hostname.encode("idna")  # or it is no name
        return cls(host=parts.hostname, port=parts.port or DEFAULT_PORT)


def context(roots: str, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Verifies by `roots` (PEM); shows a client's certificate where there is one. Raises Unusable."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9662
    try:
        made.load_verify_locations(cadata=roots)
    except (ssl.SSLError, ValueError) as error:
        raise Unusable(f"the roots to verify by cannot be used: {error}") from error
    if certificate is not None:
        try:
            made.load_cert_chain(certificate, key, password=_asks_for_none)
        except (OSError, ValueError) as error:
            raise Unusable(f"--client-certificate: {certificate} cannot be used: {error}") from error
    return made


def _asks_for_none() -> str:
    raise ValueError("its key is encrypted; name one that is not, which only you can read")


class SyslogServer:
    """A sink. It connects when there is something to send; settling ends the connection."""

    settles_after, settles_within_s = 10_000, 10.0

    def __init__(self, at: Address, tls: ssl.SSLContext, *, trusts_tcp: bool = False) -> None:
        self._at, self._tls, self._trusts_tcp = at, tls, trusts_tcp
        self._connection: _Connection | None = None

    def take(self, records: Sequence[bytes]) -> None:
        """Raises Undelivered."""
        try:
            if self._connection is None:
                self._connection = _Connection(self._at, self._tls)
            self._connection.send(b"".join(records))
        except OSError as error:
            self.close()
            raise Undelivered(f"{self._at}: {_told(error)}") from error

    def settle(self) -> None:
        """End the connection in order. Raises Undelivered."""
        if self._connection is None:
            return
        try:
            self._connection.end(trusts_tcp=self._trusts_tcp)
        except OSError as error:
            raise Undelivered(f"{self._at}: {_told(error)}") from error
        finally:
            self.close()

    def close(self) -> None:
        """At once, whatever was sent. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """TLS over buffers of our own: what came before our close_notify and what came after it are told apart, and an
    alert from the answer. All methods may raise OSError, of which ssl's errors are some."""

    def __init__(self, at: Address, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=at.host)
        self._plain = socket.create_connection((at.host, at.port), timeout=CONNECT_S)
        try:
            self._until_done(self._tls.do_handshake)
            self._plain.settimeout(SEND_S)
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:PIECE_BYTES]) :]
            self._flush()

    def end(self, *, trusts_tcp: bool) -> None:
        """The other side has read everything when this returns.

        It said so; with `trusts_tcp` that TCP ended in order, after our close_notify and without a reset, is enough.
        """
        self._wait_until_acknowledged()  # so that what it leaves unread is a reset in place of an end
        if self._has_ended():
            raise OSError(0, "it closed the connection; what it took is not known")
        self._close_notify()
        self._plain.settimeout(CLOSE_S)
        try:
            self._until_done(lambda: self._tls.read(PIECE_BYTES))
        except ssl.SSLZeroReturnError:
            return self._end_tcp()
        except (ssl.SSLEOFError, TimeoutError) as error:
            if trusts_tcp and isinstance(error, ssl.SSLEOFError):
                return self._end_tcp()
            raise OSError(0, "it did not answer close_notify (RFC 5425 §4.4); what it took is not known") from error
        raise OSError(0, "it talks instead of answering close_notify; what it took is not known")

    def close(self) -> None:
        self._plain.close()

    def _has_ended(self) -> bool:
        """It has sent a close_notify, or the end of the stream, of its own accord. Tickets are read here, too."""
        self._plain.settimeout(0)
        try:
            while True:
                self._receive()
                with contextlib.suppress(ssl.SSLWantReadError):
                    if not self._tls.read(PIECE_BYTES):
                        return True
        except BlockingIOError:
            return False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return True

    def _close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._plain.settimeout(SEND_S)
        self._flush()

    def _end_tcp(self) -> None:
        """Raises ConnectionResetError where something was left unread."""
        self._plain.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):  # it has said that it read everything, and is in no hurry
            self._plain.recv(PIECE_BYTES)

    def _wait_until_acknowledged(self) -> None:
        """The other machine has every byte."""
        deadline = time.monotonic() + SEND_S
        while self._unacknowledged_bytes():
            if time.monotonic() > deadline:
                raise TimeoutError(0, "it does not acknowledge what was sent")
            time.sleep(POLL_S)

    def _unacknowledged_bytes(self) -> int:
        broke = self._plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if broke:
            raise OSError(broke, os.strerror(broke))
        (count,) = struct.unpack("i", fcntl.ioctl(self._plain.fileno(), termios.TIOCOUTQ, bytes(4)))
        return int(count)

    def _until_done(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
                return self._flush()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert that says why
                    self._flush()
                raise

    def _receive(self) -> None:
        data = self._plain.recv(PIECE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())


def _told(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return error.strerror or str(error)
