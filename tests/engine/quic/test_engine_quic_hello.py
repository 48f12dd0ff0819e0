"""The hello to an origin over QUIC. That an origin agrees to it, tests/end_to_end/test_quic_decrypted.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from quic_world import origin, story, world

from mitmsec.core.clienthello import ClientHello, parse_message
from mitmsec.engine.quic.hello import HYBRID, IN_CERTIFICATES_ONLY, SHARE_BYTES, Hello
from mitmsec_certs.key_encapsulation import encapsulation

NAME = "www.origin.test"


def begun(*, hybrid: bool = True) -> tuple[Hello, bytes]:
    """One that has said its hello, and that."""
    hello = Hello(is_client=True, alpn_protocols=["h3"], server_name=NAME)
    hello.begin(encapsulation() if hybrid else None)
    said = {epoch: Buffer(capacity=16384) for epoch in tls.Epoch}
    hello.handle_message(b"", said)
    return hello, said[tls.Epoch.INITIAL].data


def answer(share: tuple[int, bytes], suite: int = 0x1301, version: int = tls.TLS_VERSION_1_3) -> bytes:
    buffer = Buffer(capacity=4096)
    hello = tls.ServerHello(
        random=bytes(32),
        legacy_session_id=b"",
        cipher_suite=suite,
        compression_method=0,
        key_share=share,
        supported_version=version,
    )
    tls.push_server_hello(buffer, hello)
    return buffer.data


def agreed(hello: Hello, message: bytes) -> None:
    hello.handle_message(message, {epoch: Buffer(capacity=16384) for epoch in tls.Epoch})


def shares_of(said: bytes) -> dict[int, bytes]:
    return dict(tls.pull_client_hello(Buffer(data=said)).key_share or [])


def test_it_offers_the_hybrid_group_first_and_two_others() -> None:
    for hybrid in (True, False):
        _, said = begun(hybrid=hybrid)
        read = parse_message(said)
        assert isinstance(read, ClientHello)
        assert read.groups == ((HYBRID,) if hybrid else ()) + (0x001D, 0x0017)
        assert {group: len(share) for group, share in shares_of(said).items()} == (
            ({HYBRID: 1184 + 32} if hybrid else {}) | {0x001D: 32, 0x0017: 65}
        )
        assert (read.sni, read.alpn) == (NAME, ("h3",))
        assert 0x0201 not in read.signatures  # SHA-1


def test_the_secret_is_that_of_both_halves() -> None:
    hello, said = begun()
    share = shares_of(said)[HYBRID]
    secret, ciphertext = MLKEM768PublicKey.from_public_bytes(share[:-SHARE_BYTES]).encapsulate()
    near = X25519PrivateKey.generate()
    far = X25519PublicKey.from_public_bytes(share[-SHARE_BYTES:])
    assert hello._kem is not None
    theirs = ciphertext + near.public_key().public_bytes_raw()
    assert hello._hybrid_secret(hello._kem, theirs) == secret + near.exchange(far)
    agreed(hello, answer((HYBRID, theirs)))
    assert (hello.group, hello.state) == (HYBRID, tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)


def test_who_answers_with_a_group_of_before_has_that() -> None:
    hello, _ = begun()
    agreed(hello, answer((0x001D, X25519PrivateKey.generate().public_key().public_bytes_raw())))
    assert (hello.group, hello.state) == (0x001D, tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(answer((HYBRID, bytes(1119))), id="too short"),
        pytest.param(answer((HYBRID, bytes(1121))), id="too long"),
        pytest.param(answer((HYBRID, bytes(1120))), id="a point that gives no secret"),
        pytest.param(answer((HYBRID, bytes(1120)), suite=0x1305), id="another suite"),
        pytest.param(answer((HYBRID, bytes(1120)), version=0x0303), id="another version"),
    ],
)
def test_a_broken_answer_is_told_so(message: bytes) -> None:
    hello, _ = begun()
    with pytest.raises(tls.Alert):
        agreed(hello, message)


def test_a_signature_that_is_for_certificates_only_is_none() -> None:
    hello, _ = begun()
    for algorithm in IN_CERTIFICATES_ONLY:
        with pytest.raises(tls.AlertIllegalParameter):
            hello._check_certificate_verify_signature(tls.CertificateVerify(algorithm=algorithm, signature=b""))


@story
async def test_with_an_origin_that_has_no_hybrid_group_it_comes_to_another(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca], hybrid=True) as the:
        async with the.client() as client:
            assert (await client.got("/")).status == "200"
        ended = await the.end()
        assert ended.tls is not None
        assert ended.tls.server is not None
        assert ended.tls.server.group == "x25519"
