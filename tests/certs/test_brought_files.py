"""Certificates and keys in whatever file an operator brings them."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from enterprise import DER, between, certified, root, rsa_key
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs import ceremony
from mitmsec_certs.brought_files import CERTIFICATES_LIMIT, Brought, NeedsPassphrase, brought, brought_apart
from mitmsec_certs.sub_ca import Unsuitable

ROOT = root()
POLICY = between(ROOT)
SUB = certified("sub", POLICY)
WORD = "correct horse battery"


def test_pem_with_certificates_and_a_key_in_any_order() -> None:
    for data in (SUB.pem + POLICY.pem + SUB.key_pem(), SUB.key_pem() + SUB.pem + POLICY.pem):
        found = brought("sub.pem", b"# our CA\n" + data)
        assert found.certificates == (SUB.certificate, POLICY.certificate)
        assert found.public_key == SUB.spki


def test_der_and_a_key_alone() -> None:
    assert brought("sub.cer", SUB.certificate.public_bytes(DER)) == Brought((SUB.certificate,))
    assert brought("sub.key", SUB.key_pem()).public_key == SUB.spki
    assert brought("sub.pem", SUB.pem).public_key is None


@pytest.mark.parametrize("data", [SUB.key_pem(WORD.encode()), SUB.p12([POLICY, ROOT], WORD.encode())])
def test_what_is_encrypted_needs_its_passphrase(data: bytes) -> None:
    assert brought("sub", data, WORD).public_key == SUB.spki
    for passphrase in (None, "another passphrase"):
        with pytest.raises(NeedsPassphrase):
            brought("sub", data, passphrase)


def test_pkcs12_brings_everything() -> None:
    found = brought("sub.p12", SUB.p12([POLICY, ROOT], WORD.encode()), WORD)
    assert set(found.certificates) == {SUB.certificate, POLICY.certificate, ROOT.certificate}


@pytest.mark.parametrize("options", [["-legacy"], []])
def test_pkcs12_as_openssl_writes_it(tmp_path: Path, options: list[str]) -> None:
    """Windows exports with 3DES still, as `-legacy` does."""
    (tmp_path / "sub.pem").write_bytes(SUB.key_pem() + SUB.pem + POLICY.pem)
    legacy = ["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1"] if options else []
    command = ["openssl", "pkcs12", "-export", "-in", "sub.pem", "-out", "sub.p12", "-passout", f"pass:{WORD}", *legacy]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert brought("sub.p12", (tmp_path / "sub.p12").read_bytes(), WORD).public_key == SUB.spki


def scrypt_bomb(rounds: int, times: int = 1) -> bytes:
    """A key (PEM, PKCS #8) that takes 1 KiB of memory for each of `rounds`, so many times, whatever the passphrase."""

    def element(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        size = bytes([len(body)]) if len(body) < 128 else b"\x81" + bytes([len(body)])  # none is longer than 255
        return bytes([tag]) + size + body

    def number(value: int) -> bytes:
        return element(2, value.to_bytes(value.bit_length() // 8 + 1))

    scrypt = element(6, bytes.fromhex("2b06010401da47040b"))
    aes = element(6, bytes.fromhex("60864801650304012a"))
    kdf = element(0x30, scrypt, element(0x30, element(4, b"saltsalt"), number(rounds), number(8), number(times)))
    cipher = element(0x30, aes, element(4, bytes(16)))
    scheme = element(0x30, element(6, bytes.fromhex("2a864886f70d01050d")), element(0x30, kdf, cipher))
    der = element(0x30, scheme, element(4, bytes(160)))
    body = base64.encodebytes(der)
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + body + b"-----END ENCRYPTED PRIVATE KEY-----\n"


def test_a_process_of_its_own_reads_what_it_reads_itself() -> None:
    for data, word in ((SUB.pem + POLICY.pem + SUB.key_pem(), None), (SUB.p12([POLICY], WORD.encode()), WORD)):
        here, apart = brought("sub", data, word), brought_apart("sub", data, word)
        assert (apart.certificates, apart.public_key) == (here.certificates, here.public_key)
    assert brought_apart("sub", SUB.pem) == Brought((SUB.certificate,))
    with pytest.raises(NeedsPassphrase):
        brought_apart("sub", SUB.key_pem(WORD.encode()))
    with pytest.raises(Unsuitable, match="neither PEM, DER nor PKCS #12"):
        brought_apart("sub", b"anything")


def test_a_file_that_was_made_to_take_all_memory_does_not_get_it() -> None:
    with pytest.raises(Unsuitable, match="too much memory"):
        brought_apart("sub.key", scrypt_bomb(1 << 24), WORD)


def test_a_file_that_was_made_to_take_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceremony, "CPU_LIMIT_S", 1)
    with pytest.raises(Unsuitable, match="takes too long, or too much memory"):
        brought_apart("sub.key", scrypt_bomb(1 << 14, 10_000), WORD)


def test_a_file_with_thousands_of_certificates_is_no_cas() -> None:
    assert len(brought("many.pem", SUB.pem * CERTIFICATES_LIMIT).certificates) == CERTIFICATES_LIMIT
    with pytest.raises(Unsuitable, match="more than 100 certificates"):
        brought("many.pem", SUB.pem * (CERTIFICATES_LIMIT + 1))


def test_keys_of_rsa_too() -> None:
    sub = certified("sub", ROOT, key=rsa_key())
    assert brought("sub", sub.pem + sub.key_pem()).public_key == sub.spki


def test_a_key_of_another_kind_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(Unsuitable, match="neither RSA nor of an elliptic curve"):
        brought("sub.key", key)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"0\x82\x01\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END"])
def test_what_is_none_of_these_is_told_with_its_name(data: bytes) -> None:
    with pytest.raises(Unsuitable, match=r"some\.file: "):
        brought("some.file", data)


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda data: b"-----BEGIN " + data))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        brought("any", data, WORD)
    except (Unsuitable, NeedsPassphrase):
        return


@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from([SUB.pem + SUB.key_pem(), SUB.certificate.public_bytes(DER)])))
    file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        brought("any", bytes(file), WORD)
    except (Unsuitable, NeedsPassphrase):
        return
