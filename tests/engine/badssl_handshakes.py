"""The categories of the mirror that are about the handshake: a good certificate, and TLS as it should not be spoken.

    OpenSsl   security level 0: old versions, NULL, static RSA, CBC, Diffie-Hellman, an old curve
    GnuTls    RC4 and 3DES, which OpenSSL as it is shipped has not
    ByHand    what neither has: SSL 3, export suites, groups of 512 bits and less, SHA-1

The first two have a careless client as well, which shows that they do serve. What is spoken by hand ends at the
client's turn in the key exchange: who takes it has agreed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BufferedReader

from badssl import ANSWER, PATIENCE_S, Category, context_of, listening, serving
from badssl_categories import DOMAIN, pki
from badssl_certificates import DATA, Certified, Shape, rsa_key
from crafted_servers import server_hello
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from gnutls_session import gnutls_session, library
from hellos import numbers, vector

REQUEST = b"GET / HTTP/1.1\r\nHost: careless\r\n\r\n"
PRIME_480 = int(
    "c2e59181e7fd486784f071f880be5da06bbd749fb8383b1202ee1f7d878e"
    "02fa7b0e09a8c815e71c1950dfcd48fcddca7dc66c4edc362bc220368593",
    16,
)
PRIME_512 = int(
    "dc07fa64f40eb4d747be1a506b5f6a7d87849d4437a9b8b21fa8e329db249a1d"
    "0482cadcc5222389517ece0781eeb82f9d305daa3509e73f83c7ed99832cd793",
    16,
)
X25519 = b"\x03" + numbers(0x001D) + vector(bytes([9, *bytes(31)]), 1)
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
ALERT = b"\x15"


class WentOn(Exception):
    """A client agreed to what it should have refused."""


@dataclass(frozen=True, slots=True)
class OpenSsl:
    """A server that can do nothing else. `group`: a file of Diffie-Hellman parameters."""

    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ciphers: str = "ALL"
    group: str = ""
    curve: str = ""

    @contextlib.contextmanager
    def __call__(self, category: Category) -> Iterator[int]:
        with serving(self._set(context_of(category))) as port:
            yield port

    def careless(self, port: int) -> bytes:
        """What a client gets that will do anything. Raises OSError."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock,
            self._set(client).wrap_socket(sock) as tls,
        ):
            tls.sendall(REQUEST)
            return b"".join(iter(lambda: tls.recv(4096), b""))

    def _set(self, context: ssl.SSLContext) -> ssl.SSLContext:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = context.maximum_version = self.version
        context.set_ciphers(f"{self.ciphers}:@SECLEVEL=0")
        if self.group:
            context.load_dh_params(str(DATA / self.group))
        if self.curve:
            context.set_ecdh_curve(self.curve)
        return context


@dataclass(frozen=True, slots=True)
class GnuTls:
    """A server that has this one cipher, for TLS 1.2."""

    cipher: str
    digest: str
    exchange: str

    @contextlib.contextmanager
    def __call__(self, category: Category) -> Iterator[int]:
        chain, key = b"".join(one.pem for one in category.chain), category.chain[0].key_pem

        def answer(sock: socket.socket) -> None:
            with gnutls_session(sock, self.priority, PATIENCE_S, chain, key) as session:
                if session.recv():
                    session.sendall(ANSWER)

        with listening(answer) as port:
            yield port

    def careless(self, port: int) -> bytes:
        """What a client gets that will do anything. Raises OSError."""
        with (
            socket.create_connection(("127.0.0.1", port)) as sock,
            gnutls_session(sock, self.priority, PATIENCE_S) as session,
        ):
            session.sendall(REQUEST)
            return b"".join(iter(session.recv, b""))

    @property
    def priority(self) -> str:
        suite = f"+{self.cipher}:+{self.digest}:+{self.exchange}"
        return f"NONE:+VERS-TLS1.2:{suite}:+COMP-NULL:+SIGN-ALL:+GROUP-ALL:+CTYPE-X509"


@dataclass(frozen=True, slots=True)
class ByHand:
    """A server that chooses this whatever was offered. `share`: its part of the key exchange, which it signs.

    Raises WentOn, once it is done with, if a client did not refuse.
    """

    suite: int
    version: int = 0x0303
    share: bytes = b""
    has_sha1: bool = False

    @contextlib.contextmanager
    def __call__(self, category: Category) -> Iterator[int]:
        agreed: list[bytes] = []

        def answer(sock: socket.socket) -> None:
            sock.settimeout(PATIENCE_S)
            with sock.makefile("rb") as stream:
                hello = record(stream)
                sock.sendall(self._flight(category, hello[11:43]))
                kind = record(stream)[:1]
            if kind not in {ALERT, b""}:
                agreed.append(kind)  # before the client can notice that nothing follows

        with listening(answer) as port:
            yield port
        if agreed:
            raise WentOn(category.id)

    def _flight(self, category: Category, random: bytes) -> bytes:
        """ServerHello to ServerHelloDone."""
        chain = vector(b"".join(vector(one.der, 3) for one in category.chain), 3)
        messages = b"\x0b" + vector(chain, 3)
        if self.share:
            messages += b"\x0c" + vector(self.share + self._signature(category.chain[0], random), 3)
        messages += b"\x0e" + vector(b"", 3)
        hello = server_hello(self.suite, version=self.version)
        return hello + b"\x16" + numbers(self.version) + vector(messages)

    def _signature(self, leaf: Certified, random: bytes) -> bytes:
        assert isinstance(leaf.key, rsa.RSAPrivateKey)
        number, digest = (0x0201, hashes.SHA1()) if self.has_sha1 else (0x0401, hashes.SHA256())
        signed = leaf.key.sign(random + bytes(32) + self.share, padding.PKCS1v15(), digest)
        return numbers(number) + vector(signed)


def record(stream: BufferedReader) -> bytes:
    """b"" at the end. Raises OSError."""
    head = stream.read(5)
    return head + stream.read(int.from_bytes(head[3:]))


@cache
def handshake_categories() -> tuple[Category, ...]:
    return (*_versions(), *_suites(), *_groups())


def _category(
    label: str, why: str, lines: str, server: OpenSsl | GnuTls | ByHand, error: str = "", *, is_either: bool = False
) -> Category:
    """Accepted if there is no `error`."""
    name = f"{label}.{DOMAIN}"
    is_missing = isinstance(server, GnuTls) and library() is None
    return Category(
        id=label,
        why=why,
        name=name,
        chain=(_leaf(name), pki().rsa_ca),
        error=error,
        checklist=tuple(lines.split()),
        store=pki().store,
        server=server,
        lacks="install gnutls-bin: a server that still has RC4 and 3DES" if is_missing else "",
        breaks=bool(error),
        is_either=is_either,
    )


def _leaf(name: str) -> Certified:
    """It may be used for static RSA too."""
    bits = {"digital_signature", "key_encipherment"}
    usage = x509.KeyUsage(**{bit: bit in bits for bit in USAGES})
    shape = Shape(common_name=name, names=[name], key=rsa_key(2048, 2), signs=None, more=[(usage, True)])
    return pki().rsa_ca.issue(shape)


def _versions() -> list[Category]:
    old, refused = ssl.TLSVersion, "protocol version"
    return [
        _category("tls-v1-3", "TLS 1.3", "", OpenSsl(old.TLSv1_3)),
        _category("tls-v1-2", "TLS 1.2, ECDHE and AES-GCM", "", OpenSsl(ciphers="ECDHE+AESGCM")),
        _category("tls-v1-1", "TLS 1.1", "U21", OpenSsl(old.TLSv1_1), refused),
        _category("tls-v1-0", "TLS 1.0", "U21", OpenSsl(old.TLSv1), refused),
        _category("sslv3", "SSL 3", "U21", ByHand(0x002F, version=0x0300), "protocol"),
    ]


def _suites() -> list[Category]:
    refused = "handshake failure"
    only = "no forward secrecy"
    return [
        _category("cbc", "CBC: weak, not broken; mitmsec has AEAD only", "",
                  OpenSsl(ciphers="ECDHE+AES:!AESGCM:!AESCCM"), refused, is_either=True),
        _category("static-rsa", f"static RSA: {only}", "U22", OpenSsl(ciphers="kRSA+AESGCM"), refused),
        _category("3des", "3DES", "U22", GnuTls("3DES-CBC", "SHA1", "ECDHE-RSA"), refused),
        _category("rc4", "RC4", "U22", GnuTls("ARCFOUR-128", "SHA1", "ECDHE-RSA"), refused),
        _category("rc4-md5", "RC4 with MD5", "U22", GnuTls("ARCFOUR-128", "MD5", "RSA"), refused),
        _category("null", "no encryption", "U22", OpenSsl(ciphers="eNULL"), refused),
        _category("anonymous", "no certificate", "U22", OpenSsl(ciphers="aNULL"), refused),
        _category("export", "RC4 of 40 bits, for export", "U22", ByHand(0x0003), "cipher"),
        _category("export-des", "DES of 40 bits, for export", "U22", ByHand(0x0008), "cipher"),
    ]  # fmt: skip


def _groups() -> list[Category]:
    refused = "handshake failure"
    return [
        _category("dh2048", "Diffie-Hellman, 2,048 bits; mitmsec has ECDHE only", "", _dh("dh2048"), refused,
                  is_either=True),
        _category("dh1024", "Diffie-Hellman, 1,024 bits", "U23", _dh("dh1024"), refused),
        _category("dh512", "Diffie-Hellman, 512 bits", "U23", ByHand(0x009E, share=_share(PRIME_512)), "cipher"),
        _category("dh480", "Diffie-Hellman, 480 bits", "U23", ByHand(0x009E, share=_share(PRIME_480)), "cipher"),
        _category("dh-composite", "Diffie-Hellman, a modulus that is no prime", "U23", _dh("dh-composite"), refused),
        _category("dh-small-subgroup", "Diffie-Hellman, a generator of 32 bits' order", "U23",
                  _dh("dh-small-subgroup"), refused),
        _category("no-common-group", "no group but P-192", "", OpenSsl(ciphers="ECDHE", curve="prime192v1"), refused),
        _category("sha1-key-exchange", "its key exchange signed with SHA-1", "",
                  ByHand(0xC02F, share=X25519, has_sha1=True), "signature"),
    ]  # fmt: skip


def _share(prime: int) -> bytes:
    """A server's, in a group that OpenSSL will not serve even at level 0."""
    size_bytes = prime.bit_length() // 8
    ours = pow(2, 1 << 400, prime)
    return b"".join(vector(number.to_bytes(size)) for number, size in ((prime, size_bytes), (2, 1), (ours, size_bytes)))


def _dh(name: str) -> OpenSsl:
    return OpenSsl(ciphers="DHE+AESGCM", group=f"{name}.pem")
