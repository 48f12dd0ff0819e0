"""A collector: a real syslog server behind TLS, that can also misbehave."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import trustme

RESET_AT_ONCE = struct.pack("ii", 1, 0)


class Manner(StrEnum):
    """What a collector does with one connection."""

    ORDERLY = "orderly"  # reads all, and answers close_notify
    SILENT = "silent"  # reads all, and closes without a word
    RESETS = "resets"  # after some bytes, with what it has read thrown away
    GOES_AWAY = "goes away"  # likewise, but ends the TCP connection in order


class Collector:
    """What came in whole frames over connections that it ended in order; one connection at a time."""

    def __init__(self, context: ssl.SSLContext, manners: list[Manner], *, after_bytes: int = 20_000) -> None:
        self.messages, self.connections = list[bytes](), 0
        self.peer: dict[str, object] | None = None
        self.ended = threading.Event()  # a connection has
        self._context, self._manners, self._after_bytes = context, manners, after_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            manner = self._manners.pop(0) if self._manners else Manner.ORDERLY
            self.connections += 1
            with contextlib.suppress(OSError), plain:
                plain.settimeout(20)
                self._one(plain, manner)
            self.ended.set()

    def _one(self, plain: socket.socket, manner: Manner) -> None:
        tls = self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False)
        with tls:
            self.peer = tls.getpeercert()
            data, fails = b"", manner in (Manner.RESETS, Manner.GOES_AWAY)
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while more := tls.recv(16_384):
                    data += more
                    if fails and len(data) > self._after_bytes:
                        if manner is Manner.RESETS:
                            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
                        return
            self.messages += frames(data)
            if manner is Manner.ORDERLY:
                tls.unwrap()


def frames(data: bytes) -> list[bytes]:
    """The messages of a stream, by RFC 5425. Raises ValueError for what is none; a torn one at the end is dropped."""
    found = []
    while data:
        length, _, rest = data.partition(b" ")
        if len(rest) < int(length):
            break
        found.append(rest[: int(length)])
        data = rest[int(length) :]
    return found


class House:
    """A CA, the collector's certificate by it, and one for who sends."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.roots = folder / "roots.pem"
        self.authority.cert_pem.write_to_path(self.roots)
        self.client = folder / "client.pem"
        self.authority.issue_cert("sender.example").private_key_and_cert_chain_pem.write_to_path(self.client)
        self._server = self.authority.issue_cert("127.0.0.1")

    @contextmanager
    def collector(self, *manners: Manner, wants_client: bool = False, after_bytes: int = 20_000) -> Iterator[Collector]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.configure_cert(context)
        if wants_client:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        made = Collector(context, list(manners), after_bytes=after_bytes)
        try:
            yield made
        finally:
            made.close()
