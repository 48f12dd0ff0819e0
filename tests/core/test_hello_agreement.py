"""Our reading of real clients' hellos, held against OpenSSL's own (tests/take_hellos.py says how they were taken)."""

from __future__ import annotations

import pytest
import trustme
from hellos import REAL
from OpenSSL import SSL

from mitmsec.core.clienthello import ClientHello, parse
from mitmsec.core.names import is_address

VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class Server:
    """OpenSSL's, which tells what it read in a hello."""

    def __init__(self, ca: trustme.CA) -> None:
        self.name: bytes | None = None
        self.alpn: list[bytes] = []
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        leaf = ca.issue_cert("www.origin.example")
        leaf.configure_cert(self.context)
        self.context.set_tlsext_servername_callback(self._named)
        self.context.set_alpn_select_callback(self._offered)

    def _named(self, connection: SSL.Connection) -> None:
        self.name = connection.get_servername()

    def _offered(self, _connection: SSL.Connection, offered: list[bytes]) -> bytes:
        self.alpn = offered
        return offered[0]

    def read(self, data: bytes) -> bytes:
        """Its answer: version and suite of the ServerHello."""
        self.name, self.alpn = None, []
        connection = SSL.Connection(self.context, None)
        connection.set_accept_state()
        connection.bio_write(data)
        with pytest.raises(SSL.WantReadError):  # it took the hello, and waits for what follows
            connection.do_handshake()
        self.version = connection.get_protocol_version_name()
        answer: bytes = connection.bio_read(1 << 14)
        return answer


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(trustme.CA())


@pytest.mark.parametrize("client", REAL)
def test_openssl_reads_the_same_in_a_real_hello(server: Server, client: str) -> None:
    ours = parse(REAL[client])
    assert isinstance(ours, ClientHello)
    answer = server.read(REAL[client])
    name = (server.name or b"").decode().lower()
    assert (ours.sni or "") == ("" if is_address(name) else name)
    assert [one.encode("latin-1") for one in ours.alpn] == server.alpn
    assert VERSIONS[server.version] in ours.versions
    session_end = 5 + 4 + 2 + 32 + 1 + answer[5 + 4 + 2 + 32]
    assert int.from_bytes(answer[session_end : session_end + 2]) in ours.ciphers
    assert answer[5 + 4 + 2 + 32 + 1 : session_end] in REAL[client]


def test_there_are_hellos_of_many_clients() -> None:
    assert len(REAL) >= 20
    parsed = [parse(data) for data in REAL.values()]
    assert len({hello.ja4 for hello in parsed if isinstance(hello, ClientHello)}) >= 15
