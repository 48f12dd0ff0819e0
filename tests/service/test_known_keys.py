"""Certificate and key files beside a policy: read, checked, and the key never in this process."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from mitmsec.core.inbound_section import Pair
from mitmsec.service.known_keys import CHAIN_LIMIT_BYTES, KEY_LIMIT_BYTES, KnownKeys, apart

CA = trustme.CA()


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KnownKeys]:
    made = KnownKeys(tmp_path)
    yield made
    made.close()
    made.close()


def lay(folder: Path, name: str, *, mode: int = 0o600) -> bytes:
    leaf = CA.issue_cert(f"{name}.example")
    (folder / f"{name}.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (folder / f"{name}.key").write_bytes(leaf.private_key_pem.bytes())
    (folder / f"{name}.key").chmod(mode)
    return leaf.private_key_pem.bytes()


def test_a_pair_is_read_and_its_key_kept_behind_the_others(tmp_path: Path, keys: KnownKeys) -> None:
    contents = [lay(tmp_path, name) for name in ("a", "b")]
    found = [keys.pair(f"{name}.pem", f"{name}.key") for name in ("a", "b")]
    assert [(one.certificate_flaw, one.key_flaw, one.names) for one in found] == [
        (None, None, ("a.example",)),
        (None, None, ("b.example",)),
    ]
    assert [one.key_bytes for one in found] == list(map(len, contents))
    descriptor = keys.detach()
    try:
        assert os.pread(descriptor, 1 << 20, 0) == b"".join(contents)
        with pytest.raises(PermissionError):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_keys_that_nobody_needs_are_left_out(tmp_path: Path, keys: KnownKeys) -> None:
    """Those of the first entries stand in front."""
    first, _ = (lay(tmp_path, name) for name in ("a", "b"))
    for name in ("a", "b"):
        keys.pair(f"{name}.pem", f"{name}.key")
    descriptor = keys.detach(len(first))
    try:
        assert os.pread(descriptor, 1 << 20, 0) == first
    finally:
        os.close(descriptor)


def lay_bundle(folder: Path, password: bytes, *, mode: int = 0o600) -> tuple[bytes, tuple[bytes, ...]]:
    """A PKCS#12 file whose certificates stand in disorder, its root among them; the key, the chain that is right."""
    above = CA.create_child_ca()
    leaf = above.issue_cert("us@partner.test")
    own, issuer = (x509.load_pem_x509_certificate(pem.bytes()) for pem in leaf.cert_chain_pems)
    key: Any = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    root = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    sealing = BestAvailableEncryption(password) if password else NoEncryption()
    (folder / "us.p12").write_bytes(serialize_key_and_certificates(b"us", key, own, [root, issuer], sealing))
    (folder / "us.p12").chmod(mode)
    (folder / "us.pass").write_bytes(password + b"\n")
    (folder / "us.pass").chmod(0o600)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, tuple(one.public_bytes(Encoding.DER) for one in (own, issuer))


@pytest.mark.parametrize("password", [b"", "pässword".encode()])
def test_a_pkcs12_file_is_opened_by_its_password(tmp_path: Path, keys: KnownKeys, password: bytes) -> None:
    first = lay(tmp_path, "a")
    keys.pair("a.pem", "a.key")
    pem, chain = lay_bundle(tmp_path, password)
    found = keys.pair("us.p12", "us.pass")
    assert (flaws(found), found.chain, found.key_bytes) == ((None, None), chain, len(pem))
    descriptor = keys.detach()
    try:
        assert os.pread(descriptor, 1 << 20, 0) == first + pem
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "us.pass").write_bytes(b"another"), "no PKCS#12 file that this password opens"),
        (lambda folder: (folder / "us.p12").write_bytes(b"\x30nonsense"), "no PKCS#12 file that this password opens"),
        (lambda folder: (folder / "us.p12").chmod(0o644), "others than its owner have rights in us.p12"),
        (lambda folder: (folder / "us.pass").chmod(0o640), "others than its owner have rights in us.pass"),
        (lambda folder: (folder / "us.pass").unlink(), "cannot read us.pass: No such file"),
    ],
)
def test_a_pkcs12_file_that_cannot_be_opened_is_told_why(
    tmp_path: Path, keys: KnownKeys, spoil: Callable[[Path], object], says: str
) -> None:
    lay_bundle(tmp_path, b"secret")
    spoil(tmp_path)
    found = keys.pair("us.p12", "us.pass")
    assert says in (found.certificate_flaw or "")
    assert (found.key_flaw, found.chain, found.key_bytes) == (None, (), 0)


def flaws(found: Pair) -> tuple[str | None, str | None]:
    return found.certificate_flaw, found.key_flaw


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, keys: KnownKeys) -> None:
    lay(tmp_path, "a")
    lay(tmp_path, "b")
    assert flaws(keys.pair("a.pem", "b.key")) == (None, "b.key does not belong to the certificate")


def test_a_key_with_which_openssl_would_not_serve_is_refused_before_a_run_begins(
    tmp_path: Path, keys: KnownKeys
) -> None:
    key, now = rsa.generate_private_key(65537, 1024), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.example")])
    begun = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    (tmp_path / "a.pem").write_bytes(begun.sign(key, SHA256()).public_bytes(Encoding.PEM))
    clear = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "a.key").touch(0o600)
    (tmp_path / "a.key").write_bytes(clear)
    why = "a.key and the certificate cannot be used for TLS: ee key too small"
    assert flaws(keys.pair("a.pem", "a.key")) == (None, why)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_key_in_which_others_have_rights_is_refused(tmp_path: Path, keys: KnownKeys, mode: int) -> None:
    lay(tmp_path, "a", mode=mode)
    why = f"others than its owner have rights in a.key (mode {mode:04o}): chmod 600 a.key"
    assert flaws(keys.pair("a.pem", "a.key")) == (None, why)


def test_what_is_wrong_with_both_files_is_told_of_both(tmp_path: Path, keys: KnownKeys) -> None:
    lay(tmp_path, "a")
    (tmp_path / "a.pem").write_text("x")
    (tmp_path / "a.key").write_text("x")
    assert flaws(keys.pair("a.pem", "a.key")) == (
        "a.pem: no certificate in PEM form in it",
        "a.key: no private key in PEM form in it",
    )
    certificate, key = flaws(keys.pair("gone.pem", "gone\0.key"))
    assert certificate == "cannot read gone.pem: No such file or directory"
    assert (key or "").startswith("cannot read gone\0.key: ")


def test_what_is_no_file_of_a_sensible_size_is_refused(tmp_path: Path, keys: KnownKeys) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    assert flaws(keys.pair("folder", "pipe")) == ("folder is not a regular file", "pipe is not a regular file")
    for name, size in (("large.pem", CHAIN_LIMIT_BYTES + 1), ("large.key", KEY_LIMIT_BYTES + 1), ("empty.key", 0)):
        (tmp_path / name).touch(0o600)
        os.truncate(tmp_path / name, size)
    limits = f"a key has 1 to {KEY_LIMIT_BYTES} bytes"
    assert flaws(keys.pair("large.pem", "large.key")) == (
        f"large.pem is larger than {CHAIN_LIMIT_BYTES} bytes",
        f"large.key: {limits}, not {KEY_LIMIT_BYTES + 1}",
    )
    assert keys.pair("large.pem", "empty.key").key_flaw == f"empty.key: {limits}, not 0"


def test_a_question_is_asked_in_another_process() -> None:
    here, told = os.getpid(), []

    def question() -> str:
        told.append("here")
        return str(os.getpid())

    assert apart(question) != str(here)
    assert told == []
    assert apart(lambda: None) is None


def test_a_question_that_fails_is_no_answer() -> None:
    with pytest.raises(RuntimeError, match="has failed"):
        apart(lambda: str(1 // 0))
