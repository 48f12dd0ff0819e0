"""A local mirror of badssl.com: what a client must refuse, what it must accept, each with a server on loopback.

    category ── chain, key ──► server on 127.0.0.1 ◄── the client under test, which trusts `store`

A category that is about the handshake brings its own `server`: anything that listens on a port of 127.0.0.1 while its
block runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from badssl_certificates import Certified

from mitmsec.core.messages import Flaw

PATIENCE_S = 20.0
PAGE = b"a page of the origin's"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(PAGE), PAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One host of the mirror. `flaw`: what the client must be shown, None for an origin that must be accepted.

    Where `breaks`, the handshake itself may fail instead: then the client hears an alert; without a `flaw` it must.
    `error` must stand in what is recorded.
    """

    id: str
    why: str  # for the table
    name: str  # whom the client asks for: a host name, or an address (then without SNI)
    chain: Sequence[Certified] = ()  # as it is sent, the origin's own first
    flaw: Flaw | None = None
    error: str = ""
    breaks: bool = False
    is_either: bool = False  # another client may accept it: mitmsec does not
    checklist: tuple[str, ...] = ()
    store: Sequence[Certified] = ()  # what the client trusts
    is_public: bool = False  # these are roots that the system's vendor ships
    server: Callable[[Category], AbstractContextManager[int]] | None = None
    lacks: str = ""  # what to install before it can be served

    @property
    def is_good(self) -> bool:
        return self.flaw is None and not self.breaks

    @property
    def store_pem(self) -> bytes:
        return b"".join(one.pem for one in self.store)

    @property
    def public_roots(self) -> frozenset[str]:
        """SHA-256, hex."""
        return frozenset(hashlib.sha256(one.der).hexdigest() for one in self.store if self.is_public)

    def serving(self) -> AbstractContextManager[int]:
        """A server for this category; its port."""
        return (self.server or tls_server)(self)


@contextlib.contextmanager
def tls_server(category: Category) -> Iterator[int]:
    """A server that shows the chain of `category` as it is, whatever OpenSSL thinks of it."""
    with serving(context_of(category)) as port:
        yield port


def context_of(category: Category) -> ssl.SSLContext:
    """A server's, with the chain of `category`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        first, *rest = category.chain
        file.write(first.pem + first.key_pem + b"".join(one.pem for one in rest))
        file.flush()
        context.load_cert_chain(file.name)
    return context


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A page for whoever finishes the handshake; its port."""

    def answer(client: socket.socket) -> None:
        client.settimeout(PATIENCE_S)
        with context.wrap_socket(client, server_side=True) as tls:
            asked = b""
            while b"\r\n\r\n" not in asked and (data := tls.recv(4096)):
                asked += data
            if asked:
                tls.sendall(ANSWER)

    with listening(answer) as port:
        yield port


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Have `answer` talk to whoever comes, each in a thread, until it returns or raises OSError; the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            answer(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def write_store(category: Category, folder: Path) -> Path:
    """The category's store as a file for programs that want one."""
    path = folder / f"{category.id}-store.pem"
    path.write_bytes(category.store_pem)
    return path
