"""What we are as a server, towards the program: asked like one that somebody audits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cipher_grades import GRADES
from crafted_servers import client_hello, parsed, shaken
from cryptography import x509
from engine_world import NAME, Pages, RealMint, connected, origin, server_context, trusting, world
from hellos import body, message, numbers, records, vector
from OpenSSL import SSL

from mitmsec.engine.contexts import Leaves, OriginContext, client_session
from mitmsec.engine.openssl import TlsFailed, client_side, restrict_groups
from mitmsec.engine.strength import Strength

lib: Any = SSL._lib  # type: ignore[attr-defined]
ALERT = 21
PROTOCOL_VERSION, INAPPROPRIATE_FALLBACK = 70, 86
FALLBACK = 0x5600
OLD_ORIGIN = Strength(version="TLSv1.2", cipher_bits=128, group="x25519")


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> RealMint:
    return RealMint(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(mint: RealMint) -> SSL.Context:
    return asyncio.run(Leaves(mint).context("flow", NAME, not_after_s=None, flaw=None))


def agreed(leaf: SSL.Context, client: ssl.SSLContext) -> str | None:
    """The suite that a client and we agree to; None: we do not."""
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client_session(leaf, b""), client.wrap_bio(into, out, server_hostname=NAME)
    with contextlib.suppress(TlsFailed, ssl.SSLError):
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                theirs.do_handshake()
            ours.feed(out.read())
            done = ours.handshake()
            into.write(ours.outgoing())
            if done:
                return ours.cipher
    return None


def answer(leaf: SSL.Context, hello: bytes, origin: Strength | None = None) -> bytes:
    """What we say to a ClientHello."""
    session = client_session(leaf, b"", origin=origin)
    session.feed(hello)
    with contextlib.suppress(TlsFailed):
        session.handshake()
    return session.outgoing()


def is_hello(said: bytes) -> bool:
    """Whether this is a handshake record that begins with a ServerHello."""
    return said[0] == 22 and said[5] == 2


@pytest.mark.checklist("C2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_of_all_suites_that_a_client_can_offer_only_those_with_forward_secrecy_are_agreed_to(leaf: SSL.Context) -> None:
    every = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    every.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    taken, refused = {}, 0
    for suite in every.get_ciphers():
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if suite["protocol"] != "TLSv1.3":
            client.maximum_version = ssl.TLSVersion.TLSv1_2
            client.set_ciphers(f"{suite['name']}:@SECLEVEL=0")
        name = agreed(leaf, client)
        if name is None:
            refused += 1
        else:
            taken[name] = suite["id"] & 0xFFFF
    assert refused > 60
    assert all(name.startswith(("ECDHE-", "TLS_AES_", "TLS_CHACHA20_")) for name in taken)
    assert {GRADES[number] for number in taken.values()} <= {"A", "B"}


@pytest.mark.checklist("C2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_an_old_client_is_refused(leaf: SSL.Context, version: ssl.TLSVersion) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    assert agreed(leaf, client) is None


@pytest.mark.checklist("C2")
@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
def test_it_is_told_why(leaf: SSL.Context, version: int) -> None:
    said = answer(leaf, records(message(body((), version=version, ciphers=numbers(0x002F, 0xC013)))))
    assert (said[0], said[-1]) == (ALERT, PROTOCOL_VERSION)


@pytest.mark.checklist("C2")
def test_a_client_with_nothing_but_finite_field_groups_or_compression_gets_neither(leaf: SSL.Context) -> None:
    shareless = client_hello(groups=(0x0100,), ciphers=(0x1301, 0x009E))
    assert answer(leaf, shareless)[0] == ALERT
    plain = [(0x000A, vector(numbers(0x001D, 0x0017))), (0x000D, vector(numbers(0x0403)))]
    said = answer(leaf, records(message(body(plain, ciphers=numbers(0xC02B), compression=b"\x01\x00"))))
    assert is_hello(said)
    session_bytes = said[43]
    assert said[44 + session_bytes + 2] == 0, "no compression"


@pytest.mark.checklist("C2", "U26")
def test_a_client_that_begins_another_handshake_is_told_no(leaf: SSL.Context) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    client = client_side(context, NAME, sni=True, alpn=(), tls12=True)
    ours = shaken(client, leaf)
    assert ours.version == "TLSv1.2"
    assert client._connection.renegotiate()
    with contextlib.suppress(TlsFailed):
        client.handshake()
    ours.feed(client.outgoing())
    with contextlib.suppress(TlsFailed):
        ours.read()
    client.feed(ours.outgoing())
    with pytest.raises(TlsFailed, match="no renegotiation"):
        client.read()


def asks_for_two(port: int) -> tuple[list[bytes], set[str], bytes]:
    """What a client says in the clear that names another host in its second hello, whose leaf it sees, and the answer.

    Its first group is none of ours, so we have it say its hello again.
    """
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    restrict_groups(client, "ffdhe8192:X25519")
    client.set_tlsext_host_name(NAME.encode())
    client.set_connect_state()
    said: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.settimeout(20)

        def until_read(step: Callable[[], bytes | None]) -> bytes | None:
            while True:
                try:
                    return step()
                except SSL.WantReadError:
                    with contextlib.suppress(SSL.WantReadError):
                        said.append(client.bio_read(1 << 16))
                        sock.sendall(said[-1])
                client.bio_write(sock.recv(1 << 16))
                client.set_tlsext_host_name(b"other.test")

        until_read(client.do_handshake)
        client.send(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
        answer = until_read(lambda: client.recv(12)) or b""
        shown = client.get_peer_certificate()
        assert shown is not None
        names = shown.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return said, set(names.get_values_for_type(x509.DNSName)), answer


def test_a_second_hello_for_another_host_changes_nothing(tmp_path: Path) -> None:
    """The leaf is for the decided name, and so is each request."""

    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            (first, second, *_), names, answer = await asyncio.to_thread(asks_for_two, made.port)
            assert (NAME.encode() in first, b"other.test" in second) == (True, True)
            assert (names, answer) == ({NAME}, b"HTTP/1.1 421")
            assert pages.requests == []

    asyncio.run(main())


@pytest.mark.checklist("U25")
def test_a_client_that_fell_back_is_told_so_unless_its_origin_is_no_newer(leaf: SSL.Context) -> None:
    """RFC 7507: somebody between us made it believe that TLS 1.3 does not work."""
    groups = [(0x000A, vector(numbers(0x001D, 0x0017))), (0x000D, vector(numbers(0x0403)))]
    fallen = records(message(body(groups, ciphers=numbers(0xC02B, FALLBACK))))
    said = answer(leaf, fallen)
    assert (said[0], said[-1]) == (ALERT, INAPPROPRIATE_FALLBACK)
    assert is_hello(answer(leaf, fallen, OLD_ORIGIN))


@pytest.mark.checklist("U32")
def test_no_ticket_of_ours_allows_early_data(mint: RealMint, leaf: SSL.Context) -> None:
    client = OriginContext(mint.root_pem.encode()).session(NAME, sni=True, alpn=(), tls12=True)
    shaken(client, leaf)
    client.expect_ticket()
    assert client.read() == b""
    ticket: Any = client._connection.get_session()
    assert lib.SSL_SESSION_get_max_early_data(ticket._session) == 0


@pytest.mark.checklist("U33")
def test_a_hello_with_an_encrypted_one_inside_is_answered_as_by_a_server_that_has_none(leaf: SSL.Context) -> None:
    """Whether it is the real thing or GREASE cannot be told, and need not: the answer is the same ServerHello."""
    client = OriginContext(b"").session(NAME, sni=True, alpn=(), tls12=True)
    client.handshake()
    hello = client.outgoing()
    inner = b"\x00\x00\x01\x00\x01\x07" + vector(b"k" * 32) + vector(b"e" * 208)
    grown = _with_extension(hello, (0xFE0D, inner))
    assert parsed(grown).ech
    assert is_hello(answer(leaf, grown))


def _with_extension(hello: bytes, extension: tuple[int, bytes]) -> bytes:
    more = extension[0].to_bytes(2) + vector(extension[1])
    inner = hello[9:]
    at = 34 + 1 + inner[34]
    at += 2 + int.from_bytes(inner[at : at + 2])
    at += 1 + inner[at]
    return records(message(inner[:at] + vector(more + inner[at + 2 :])))


# -- nothing of ours to be asked ---------------------------------------------------------------------------------------
@pytest.mark.checklist("C8")
@pytest.mark.parametrize("host", ["mitm.it", "localhost", "127.0.0.1:8081"])
def test_no_name_leads_to_an_interface_of_ours(tmp_path: Path, host: str) -> None:
    """Another name than the decided one is misdirected, wherever it would lead; mitmproxy's own pages are not there."""

    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET /cert/pem HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] == b"421"
            writer.close()
            await made.end()
            assert pages.requests == []

    asyncio.run(main())


@pytest.mark.checklist("C8")
def test_an_origin_that_is_called_like_mitmproxys_own_pages_is_an_origin(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca, "mitm.it")) as port, world(tmp_path, port, [ca]) as made:
            made.name = "mitm.it"
            reader, writer = await connected(made, trusting(tmp_path), "mitm.it")
            writer.write(b"GET /cert/pem HTTP/1.1\r\nHost: mitm.it\r\nConnection: close\r\n\r\n")
            assert b"you asked for /cert/pem" in await reader.read()
            writer.close()
            await made.end()
            assert [line for line, _, _ in pages.requests] == ["GET /cert/pem HTTP/1.1"]

    asyncio.run(main())
