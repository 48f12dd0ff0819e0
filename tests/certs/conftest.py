"""A CA, leaves, and a real TLS server that presents them on loopback."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mitmsec.core.messages import Flaw
from mitmsec_certs.authority import serial_of, untrusted_chain
from mitmsec_certs.keystore import Keystore, open_keystore
from mitmsec_certs.profile import Name, leaf_profile

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nok\n"


@pytest.fixture(scope="session", autouse=True)
def brief_java() -> Iterator[None]:
    """What runs for a second gains nothing by being compiled well: half of its CPU time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        yield


class Leaf(NamedTuple):
    """A chain (DER, leaf first) and a file with chain and key for a server."""

    chain: tuple[bytes, ...]
    file: Path


class Server(NamedTuple):
    """A server on 127.0.0.1, and the requests that reached it over TLS."""

    port: int
    requests: list[bytes]


@pytest.fixture(scope="session")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Keystore:
    return open_keystore(tmp_path_factory.mktemp("ca"), "machine.example", int(time.time()))


@pytest.fixture(scope="session")
def root_file(keystore: Keystore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root") / "root.pem"
    path.write_text(keystore.root_pem)
    return path


@pytest.fixture(scope="session")
def leaf_of(keystore: Keystore, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Leaf]:
    """A leaf for a name, as the signer would make it now."""

    def make(name: str, flaw: Flaw | None = None, *, with_rsa: bool = False) -> Leaf:
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
            rsa.generate_private_key(65537, 2048) if with_rsa else ec.generate_private_key(ec.SECP256R1())
        )
        profile = leaf_profile(Name.of(name), int(time.time()), keystore.authority.validity, flaw=flaw)
        sign = keystore.authority.issue if profile.by_ca else untrusted_chain
        chain = sign(profile, key.public_key(), serial_of(secrets.token_bytes(16)))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = tmp_path_factory.mktemp("leaf") / "leaf.pem"
        file.write_bytes(private + "".join(map(ssl.DER_cert_to_PEM_cert, chain)).encode())
        return Leaf(chain, file)

    return make


@contextlib.contextmanager
def serving(leaf: Leaf) -> Iterator[Server]:
    """An HTTPS server on 127.0.0.1 that presents `leaf` until the end of the block."""
    requests: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.file)
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(20)
            with context.wrap_socket(client, server_side=True) as tls:
                request = b""
                while b"\r\n\r\n" not in request and (data := tls.recv(4096)):
                    request += data
                if request:
                    requests.append(request)
                tls.sendall(RESPONSE)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Server(listener.getsockname()[1], requests)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(scope="module")
def https(leaf_of: Callable[..., Leaf]) -> Iterator[Server]:
    """An HTTPS server with a good leaf for 127.0.0.1."""
    with serving(leaf_of("127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="session")
def serve() -> Callable[[Leaf], contextlib.AbstractContextManager[Server]]:
    return serving
