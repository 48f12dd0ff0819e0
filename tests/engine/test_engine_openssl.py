"""TLS over memory buffers, both sides of it in this process."""

from __future__ import annotations

import ssl
import time

import pytest
import trustme
from OpenSSL import SSL

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.engine import openssl
from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.openssl import TlsFailed, TlsSession, private_key
from mitmsec_certs.leaf_keys import LeafKeys


class Pair:
    """A session of ours and the standard library's server at the other end."""

    def __init__(self, session: TlsSession, context: ssl.SSLContext) -> None:
        self.session = session
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = context.wrap_bio(self.into, self.out, server_side=True)
        done = False
        for _ in range(10):
            if session.handshake() and done:
                return
            self.into.write(session.outgoing())
            try:
                self.server.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            if data := self.out.read():
                session.feed(data)
        raise AssertionError("no handshake")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def server(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def pair(ca: trustme.CA, name: str = "a.test", *certified: str) -> Pair:
    origins = OriginContext(ca.cert_pem.bytes())
    session = origins.session(name, sni=True, alpn=(b"http/1.1",), tls12=True)
    return Pair(session, server(ca, *(certified or (name,))))


def test_plaintext_passes_both_ways_in_any_amount(ca: trustme.CA) -> None:
    made = pair(ca)
    made.session.write(b"x" * 200_000)
    made.into.write(made.session.outgoing())
    got = b""
    while len(got) < 200_000:
        got += made.server.read(65536)
    assert got == b"x" * 200_000
    made.server.write(b"y" * 200_000)
    data = made.out.read()
    for at in range(0, len(data), 999):
        made.session.feed(data[at : at + 999])
        got += made.session.read()
    assert got[200_000:] == b"y" * 200_000
    assert made.session.read() == b""


def test_facts(ca: trustme.CA) -> None:
    made = pair(ca)
    assert (made.session.version, made.session.alpn, made.session.resumed) == ("TLSv1.3", b"http/1.1", False)
    assert made.session.cipher is not None
    sha256, ends_s = made.session.peer_certificate() or ("", 0)
    assert len(bytes.fromhex(sha256)) == 32
    assert ends_s > time.time()
    assert made.session.verify_errors == []


@pytest.mark.parametrize(
    ("name", "certified", "errors"),
    [
        ("a.test", "a.test", []),
        ("b.a.test", "*.a.test", []),
        ("b.test", "a.test", [62]),
        ("127.0.0.1", "127.0.0.1", []),
        ("127.0.0.1", "127.0.0.2", [64]),
        ("::1", "::1", []),
    ],
)
def test_names_and_addresses_are_checked(ca: trustme.CA, name: str, certified: str, errors: list[int]) -> None:
    assert pair(ca, name, certified).session.verify_errors == errors


def test_close_notify_is_seen_and_sent(ca: trustme.CA) -> None:
    made = pair(ca)
    with pytest.raises(ssl.SSLWantReadError):
        made.server.unwrap()
    made.session.feed(made.out.read())
    assert made.session.read() == b""
    assert made.session.closed
    made.session.close_notify()
    made.into.write(made.session.outgoing())
    made.server.unwrap()
    made.session.write(b"dropped")
    made.session.release()


def test_garbage_is_a_failure_and_not_an_end(ca: trustme.CA) -> None:
    made = pair(ca)
    made.session.feed(b"\x17\x03\x03\x00\x20" + b"z" * 32)
    with pytest.raises(TlsFailed) as caught:
        made.session.read()
    assert caught.value.alert is None


@pytest.mark.parametrize("kind", LeafKeyKind)
def test_a_leafs_key_is_read_once_and_usable(kind: LeafKeyKind) -> None:
    der = LeafKeys().of(kind, 0).private_key
    key = private_key(der)
    assert private_key(bytes(der)) is key
    SSL.Context(SSL.TLS_SERVER_METHOD).use_privatekey(key)


def test_what_is_no_key_is_told() -> None:
    with pytest.raises(ValueError, match="not a private key"):
        private_key(b"nonsense")


def test_certificates_of_a_bundle_and_what_is_none(ca: trustme.CA) -> None:
    pem = ca.cert_pem.bytes()
    bundle = (
        b"a comment\n" + pem + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + pem + b"-----BEGIN"
    )
    assert len(openssl.certificates_of_pem(bundle)) == 2
    assert openssl.certificates_of_pem(b"") == []
    with pytest.raises(ValueError, match="not a certificate"):
        openssl.certificate(b"\x30\x00")


def test_session_contexts_differ_by_name() -> None:
    assert openssl.session_context("a.test") != openssl.session_context("b.test")
    assert len(openssl.session_context("a.test")) == 32
