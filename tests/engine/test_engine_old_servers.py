"""Origins that are too weak to be spoken to.

Where no library can be had that is as bad as the server should be, its answer is written by hand: it agrees to what was
never offered, and has to be told so.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from crafted_servers import (
    DOWNGRADE,
    TLS13,
    Crafted,
    bare_server,
    server_hello,
    shaken,
)
from engine_world import NAME, blunt_origin, connected, curl, origin, server_context, trusting, world
from hellos import vector
from OpenSSL import SSL

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded
from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.openssl import TlsFailed


# -- what is agreed to that was never offered --------------------------------------------------------------------------
def answered(tmp_path: Path, answer: bytes) -> tuple[FlowEnded, int | None]:
    """How the flow ends, and which alert the origin gets. The client sees no certificate."""

    async def main() -> tuple[FlowEnded, int | None]:
        crafted = Crafted(answer)
        async with origin(crafted, None) as port, world(tmp_path, port, deadline_s=10.0) as made:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert made.mint.questions == []
            while not crafted.alerts:
                await asyncio.sleep(0.01)
            return end, crafted.alerts[0]

    return asyncio.run(main())


SSL2_HELLO = b"\x80\x15\x04\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00" + bytes(8)
REFUSED = {Outcome.MALFORMED, Outcome.ORIGIN_REFUSED}


@pytest.mark.checklist("U21")
@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
def test_an_origin_that_agrees_to_an_old_version_is_refused(tmp_path: Path, version: int) -> None:
    end, alert = answered(tmp_path, server_hello(0x002F, version=version))
    assert end.outcome in REFUSED
    assert alert == 70, "protocol_version"


@pytest.mark.checklist("U21")
def test_an_origin_that_answers_in_ssl_2_is_refused(tmp_path: Path) -> None:
    end, _ = answered(tmp_path, SSL2_HELLO)
    assert end.outcome in REFUSED


@pytest.mark.checklist("U22")
@pytest.mark.parametrize(
    "suite",
    [0x0005, 0x0004, 0xC011, 0x0001, 0x0002, 0x003B, 0xC010, 0x0003, 0x0008, 0x0062, 0x000A, 0xC012, 0x0034, 0x00A6,
     0xC018, 0x002F, 0x0035, 0x009C, 0x009D, 0xC013, 0xC027],
    ids=lambda suite: f"{suite:04x}",
)  # fmt: skip
def test_an_origin_that_agrees_to_a_weak_suite_is_refused(tmp_path: Path, suite: int) -> None:
    end, alert = answered(tmp_path, server_hello(suite))
    assert end.outcome in REFUSED
    assert alert == 47, "illegal_parameter"


PRIME_1024 = (1 << 1023) + 1155  # any number: nobody gets as far as to look at it
DIFFIE_HELLMAN = {
    "480": (1 << 479) + 1,
    "512": (1 << 511) + 111,
    "1024": PRIME_1024,
    "composite": 3 * (1 << 2046),
    "small subgroup": (1 << 2047) + 1,
}


@pytest.mark.checklist("U23")
@pytest.mark.parametrize("prime", DIFFIE_HELLMAN)
def test_an_origin_with_a_group_of_its_own_is_refused_before_its_group_is_looked_at(tmp_path: Path, prime: str) -> None:
    modulus = DIFFIE_HELLMAN[prime]
    share = vector(modulus.to_bytes((modulus.bit_length() + 7) // 8)) + vector(b"\x02") + vector(b"\x01")
    exchange = b"\x16\x03\x03" + vector(b"\x0c" + vector(share, 3))
    for suite in (0x009E, 0x0033, 0xCCAA):
        end, alert = answered(tmp_path, server_hello(suite) + exchange)
        assert end.outcome in REFUSED
        assert alert == 47, "illegal_parameter"


@pytest.mark.checklist("U23")
def test_a_finite_field_group_of_tls_1_3_is_refused_too(tmp_path: Path) -> None:
    retry = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446 §4.1.3
    answer = server_hello(0x1301, random=retry, extensions=(TLS13, (0x0033, b"\x01\x00")))
    end, alert = answered(tmp_path, answer)
    assert end.outcome in REFUSED
    assert alert == 47, "illegal_parameter"


@pytest.mark.checklist("U25")
@pytest.mark.parametrize("until", [b"\x00", b"\x01"])
def test_an_origin_that_says_it_was_downgraded_is_refused(tmp_path: Path, until: bytes) -> None:
    """RFC 8446 §4.1.3: it speaks TLS 1.3, and somebody between us and it makes it speak TLS 1.2 or less."""
    end, alert = answered(tmp_path, server_hello(random=bytes(24) + DOWNGRADE + until))
    assert end.outcome in REFUSED
    assert alert == 47, "illegal_parameter"


def test_the_same_answer_without_any_of_that_is_listened_to(tmp_path: Path) -> None:
    end, alert = answered(tmp_path, server_hello())
    assert (end.outcome, alert) == (Outcome.ORIGIN_RESET, None), "until it hangs up"


@pytest.mark.checklist("U26")
def test_an_origin_that_compresses_is_refused(tmp_path: Path) -> None:
    end, alert = answered(tmp_path, server_hello(compression=1))
    assert end.outcome in REFUSED
    assert alert == 47, "illegal_parameter"


@pytest.mark.checklist("U26")
def test_an_origin_that_cannot_renegotiate_securely_is_refused(tmp_path: Path) -> None:
    end, alert = answered(tmp_path, server_hello(extensions=()))
    assert end.outcome in REFUSED
    assert alert == 40, "handshake_failure"


@pytest.mark.checklist("U26")
def test_an_origin_that_begins_another_handshake_is_told_no() -> None:
    ca = trustme.CA()
    context = bare_server(ca)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    ours = OriginContext(ca.cert_pem.bytes()).session("a.test", sni=True, alpn=(), tls12=True)
    theirs = shaken(ours, context)
    assert ours.version == "TLSv1.2"
    assert theirs._connection.renegotiate()
    theirs.handshake()
    ours.feed(theirs.outgoing())
    assert ours.read() == b""
    theirs.feed(ours.outgoing())
    with pytest.raises(TlsFailed, match="no renegotiation"):
        theirs.read()


# -- real servers of the old days --------------------------------------------------------------------------------------
OLD_SERVERS = {
    "TLS 1.0": (ssl.TLSVersion.TLSv1, "ALL"),
    "TLS 1.1": (ssl.TLSVersion.TLSv1_1, "ALL"),
    "static RSA": (ssl.TLSVersion.TLSv1_2, "kRSA"),
    "NULL": (ssl.TLSVersion.TLSv1_2, "eNULL"),
    "anonymous": (ssl.TLSVersion.TLSv1_2, "aNULL"),
    "DHE": (ssl.TLSVersion.TLSv1_2, "DHE"),
    "CBC": (ssl.TLSVersion.TLSv1_2, "ECDHE+AES:!AESGCM"),
}


def weak(context: ssl.SSLContext, what: str) -> ssl.SSLContext:
    version, ciphers = OLD_SERVERS[what]
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    return context


@pytest.mark.checklist("U21", "U22")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", OLD_SERVERS)
def test_a_real_old_server_is_refused_that_a_careless_client_reaches(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        ca = trustme.CA()
        server = weak(server_context(ca, key_type=trustme.KeyType.RSA), what)
        if what == "DHE":
            server.load_dh_params(_dh_params(tmp_path, 1024))
        async with blunt_origin(server) as port:
            careless = weak(ssl.create_default_context(), what)
            careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
            assert await asyncio.to_thread(_reaches, careless, port)
        async with blunt_origin(server) as port, world(tmp_path, port, [ca]) as made:
            status, out, _ = await curl(made, tmp_path)
            assert (status, out) == (35, "")
            end = await made.end()
            assert end.outcome in REFUSED
            assert made.mint.questions == []

    asyncio.run(main())


def _reaches(client: ssl.SSLContext, port: int) -> bool:
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        client.wrap_socket(sock, server_hostname=NAME) as tls,
    ):
        return tls.version() is not None


def _dh_params(tmp_path: Path, bits: int) -> Path:
    """Real parameters of a size that OpenSSL itself will not make quickly: RFC 2409's second Oakley group."""
    assert bits == 1024
    prime = bytes.fromhex(
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece65381ffffffffffffffff"
    )
    der = b"\x02\x81\x81\x00" + prime + b"\x02\x01\x02"
    pem = base64.encodebytes(b"\x30\x81" + bytes([len(der)]) + der).decode()
    path = tmp_path / "dh.pem"
    path.write_text(f"-----BEGIN DH PARAMETERS-----\n{pem}-----END DH PARAMETERS-----\n")
    return path


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    yield port


@contextlib.asynccontextmanager
async def gnutls_server(tmp_path: Path, ca: trustme.CA, priority: str) -> AsyncIterator[int]:
    leaf = ca.issue_cert(NAME, key_type=trustme.KeyType.RSA)
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "leaf.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "leaf.key")
    with _free_port() as port:
        process = await asyncio.create_subprocess_exec(
            "gnutls-serv", "--port", str(port), "--priority", priority, "--echo", "--quiet", "--disable-client-cert",
            "--x509certfile", str(tmp_path / "leaf.pem"), "--x509keyfile", str(tmp_path / "leaf.key"),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    try:
        for _ in range(1500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            await asyncio.sleep(0.02)
        yield port
    finally:
        process.kill()
        await process.wait()


@pytest.mark.checklist("U22")
@pytest.mark.skipif(
    shutil.which("gnutls-serv") is None, reason="install gnutls-bin: a server that still has RC4 and 3DES"
)
@pytest.mark.parametrize("cipher", ["ARCFOUR-128", "3DES-CBC"])
def test_a_real_server_with_rc4_or_3des_is_refused_that_a_careless_client_reaches(tmp_path: Path, cipher: str) -> None:
    """GnuTLS still has them; OpenSSL as it is shipped has not."""
    priority = f"NONE:+VERS-TLS1.2:+{cipher}:+SHA1:+MD5:+RSA:+ECDHE-RSA:+COMP-NULL:+SIGN-ALL:+GROUP-ALL:+CTYPE-X509"

    async def main() -> None:
        ca = trustme.CA()
        async with gnutls_server(tmp_path, ca, priority) as port, world(tmp_path, port, [ca]) as made:
            careless = await asyncio.create_subprocess_exec(
                "gnutls-cli", "--insecure", "--priority", priority, "--port", str(port), "127.0.0.1",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            out, _ = await asyncio.wait_for(careless.communicate(), 20)
            assert cipher.encode() in out, "it works, for whoever wants it"
            status, page, _ = await curl(made, tmp_path)
            assert (status, page) == (35, "")
            assert (await made.end()).outcome in REFUSED

    asyncio.run(main())
