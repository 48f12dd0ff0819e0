"""Certificates as other programs see them: OpenSSL, Python and curl."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitmsec.core.messages import Flaw
from mitmsec_certs.authority import (
    Authority,
    KeyRefused,
    authority_identifier,
    make_issuing,
    serial_of,
    spki_of,
    untrusted_chain,
    validity_of,
)
from mitmsec_certs.defects import classify
from mitmsec_certs.keystore import Keystore, open_keystore
from mitmsec_certs.profile import WRONG_NAME, IssuingProfile, Name, leaf_profile

LeafOf = Callable[..., Any]
Serve = Callable[[Any], AbstractContextManager[Any]]
LONG_NAME = "a" * 61 + ".example"


def openssl_verify(folder: Path, keystore: Keystore, chain: tuple[bytes, ...], *options: str) -> str:
    (folder / "root.pem").write_text(keystore.root_pem)
    (folder / "sent.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, chain[1:])))
    (folder / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(chain[0]))
    sent = ["-untrusted", "sent.pem"] if chain[1:] else []
    command = ["openssl", "verify", "-purpose", "sslserver", "-x509_strict", "-CAfile", "root.pem", *sent, *options]
    done = subprocess.run([*command, "leaf.pem"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verify_code(port: int, name: str, root: Path) -> int:
    """OpenSSL's verification result as Python's ssl sees it; 0 when the handshake succeeds."""
    context = ssl.create_default_context(cafile=str(root))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        try:
            with context.wrap_socket(client, server_hostname=name):
                return 0
        except ssl.SSLCertVerificationError as error:
            return error.verify_code


def curl(port: int, name: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", str(root)]
    target = ["--connect-to", f"::127.0.0.1:{port}", f"https://{name}/"]
    return subprocess.run([*command, *target], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("with_rsa", [False, True])
@pytest.mark.parametrize("name", ["www.origin.test", "192.0.2.7", "2001:db8::1", LONG_NAME, "under_score.test"])
def test_openssl_accepts_every_leaf_in_strict_mode(
    tmp_path: Path, keystore: Keystore, leaf_of: LeafOf, name: str, with_rsa: bool
) -> None:
    option = "-verify_ip" if Name.of(name).is_address else "-verify_hostname"
    chain = leaf_of(name, with_rsa=with_rsa).chain
    assert openssl_verify(tmp_path, keystore, chain, option, name).endswith("leaf.pem: OK\n")


@pytest.mark.parametrize("name", ["www.origin.test", "127.0.0.1", "::1", LONG_NAME])
def test_python_and_curl_accept_the_leaf_from_a_real_server(
    leaf_of: LeafOf, serve: Serve, root_file: Path, name: str
) -> None:
    """With the root alone: the chain that is sent holds the issuing CA."""
    with serve(leaf_of(name)) as server:
        assert verify_code(server.port, name, root_file) == 0
        done = curl(server.port, f"[{name}]" if ":" in name else name, root_file)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        (Flaw.EXPIRED, "certificate has expired"),
        (Flaw.NOT_YET_VALID, "certificate is not yet valid"),
        (Flaw.WRONG_NAME, "no alternative certificate subject name matches"),
        (Flaw.UNTRUSTED, "unable to get local issuer certificate"),
    ],
)
def test_each_flaw_makes_clients_fail_with_an_error_of_its_kind(
    leaf_of: LeafOf, serve: Serve, root_file: Path, flaw: Flaw, words: str
) -> None:
    """And our own classification of what the client saw gives the flaw back."""
    with serve(leaf_of("www.origin.test", flaw)) as server:
        defect = classify(verify_code(server.port, "www.origin.test", root_file))
        done = curl(server.port, "www.origin.test", root_file)
    assert defect is not None
    assert defect.flaw is flaw
    assert done.returncode == 60
    assert words in done.stderr


def test_openssl_tells_the_flaws_apart(tmp_path: Path, keystore: Keystore, leaf_of: LeafOf) -> None:
    words = {
        Flaw.EXPIRED: "error 10 at 0 depth",
        Flaw.NOT_YET_VALID: "error 9 at 0 depth",
        Flaw.WRONG_NAME: "error 62 at 0 depth",
        Flaw.UNTRUSTED: "error 20 at 0 depth",
    }
    for flaw, expected in words.items():
        chain = leaf_of("www.origin.test", flaw).chain
        assert expected in openssl_verify(tmp_path, keystore, chain, "-verify_hostname", "www.origin.test")


@pytest.mark.checklist("C3", "C4", "C6")
def test_a_leaf_contains_what_its_profile_says_and_nothing_else(keystore: Keystore, leaf_of: LeafOf) -> None:
    """No policy that would claim extended validation, and no must-staple that nobody could keep."""
    leaf, issuing = map(x509.load_der_x509_certificate, leaf_of("www.origin.test").chain)
    extensions = {type(extension.value): (extension.critical, extension.value) for extension in leaf.extensions}
    usage = extensions[x509.KeyUsage][1]
    assert isinstance(usage, x509.KeyUsage)
    assert set(extensions) == {
        x509.SubjectAlternativeName,
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.AuthorityKeyIdentifier,
        x509.SubjectKeyIdentifier,
        x509.CRLDistributionPoints,
    }
    assert extensions[x509.SubjectAlternativeName] == (
        False,
        x509.SubjectAlternativeName([x509.DNSName("www.origin.test")]),
    )
    assert extensions[x509.BasicConstraints] == (True, x509.BasicConstraints(ca=False, path_length=None))
    assert extensions[x509.ExtendedKeyUsage][1] == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert usage.digital_signature
    assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_agreement, usage.key_encipherment))
    assert leaf.serial_number.bit_length() == 128
    assert [name.value for name in leaf.subject] == ["www.origin.test"]
    leaf.verify_directly_issued_by(issuing)
    issuer_key = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    identifier = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.key_identifier == issuer_key
    assert spki_of(leaf.public_key()) != keystore.authority.public_key


def test_a_name_too_long_for_the_subject_makes_the_san_critical(leaf_of: LeafOf) -> None:
    leaf = x509.load_der_x509_certificate(leaf_of(LONG_NAME).chain[0])
    assert not list(leaf.subject)
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_an_address_stands_in_the_san_as_an_address(leaf_of: LeafOf) -> None:
    leaf = x509.load_der_x509_certificate(leaf_of("2001:db8::1").chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.IPAddress(ipaddress.ip_address("2001:db8::1"))]


def test_a_leaf_with_the_wrong_name_does_not_hold_the_right_one(leaf_of: LeafOf) -> None:
    der = leaf_of("www.origin.test", Flaw.WRONG_NAME).chain[0]
    assert b"origin.test" not in der
    assert WRONG_NAME.encode() in der


def test_the_ca_is_limited_to_what_it_is_for(keystore: Keystore) -> None:
    root = x509.load_pem_x509_certificate(keystore.root_pem.encode())
    issuing = x509.load_pem_x509_certificate(keystore.issuing_pem.encode())
    root_key, issuing_key = root.public_key(), issuing.public_key()
    assert isinstance(root_key, ec.EllipticCurvePublicKey)
    assert isinstance(root_key.curve, ec.SECP384R1)
    assert isinstance(issuing_key, ec.EllipticCurvePublicKey)
    assert isinstance(issuing_key.curve, ec.SECP256R1)
    for certificate, path_length in ((root, 1), (issuing, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=path_length)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature
    purpose = issuing.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [ExtendedKeyUsageOID.SERVER_AUTH]
    validity = validity_of(issuing)
    assert validity.not_after_s - validity.not_before_s <= 365 * 86400
    assert str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value).startswith("mitmsec root machine")


def test_openssl_refuses_a_leaf_for_anything_but_a_server(tmp_path: Path, keystore: Keystore, leaf_of: LeafOf) -> None:
    chain = leaf_of("www.origin.test").chain
    assert "error 26" in openssl_verify(tmp_path, keystore, chain, "-purpose", "sslclient")


def stolen(tmp_path: Path, purpose: x509.ObjectIdentifier) -> tuple[Keystore, tuple[bytes, ...]]:
    """A certificate for `purpose`, signed with a stolen issuing key by somebody who does not care for our rules."""
    store = open_keystore(tmp_path / "ca", "host", int(time.time()))
    issuing = x509.load_pem_x509_certificate(store.issuing_pem.encode())
    key = serialization.load_pem_private_key((tmp_path / "ca" / "issuing.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")]))
        .issuer_name(issuing.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(authority_identifier(issuing), critical=False)
        .sign(key, hashes.SHA256())
    )
    return store, (leaf.public_bytes(serialization.Encoding.DER), store.authority.certificate)


PURPOSES = [
    (ExtendedKeyUsageOID.CLIENT_AUTH, "sslclient", "1.3.6.1.5.5.7.3.2", "C"),
    (ExtendedKeyUsageOID.CODE_SIGNING, "codesign", "1.3.6.1.5.5.7.3.3", "J"),
    (ExtendedKeyUsageOID.EMAIL_PROTECTION, "smimesign", "1.3.6.1.5.5.7.3.4", "S"),
]


@pytest.mark.checklist("K4")
@pytest.mark.parametrize(("oid", "purpose", "dotted", "usage"), PURPOSES, ids=[row[1] for row in PURPOSES])
def test_the_issuing_key_can_sign_for_servers_only_whoever_has_it(
    tmp_path: Path, oid: x509.ObjectIdentifier, purpose: str, dotted: str, usage: str
) -> None:
    """OpenSSL, GnuTLS and NSS hold what a CA signs against the CA's own purposes."""
    store, chain = stolen(tmp_path, oid)
    said = openssl_verify(tmp_path, store, chain, "-purpose", purpose)
    assert "error 26 at 1 depth" in said or "Invalid purpose" in said  # OpenSSL before 3.2 knows none for code
    (tmp_path / "chain.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, chain)))
    if shutil.which("certtool"):
        command = ["certtool", "--verify", "--load-ca-certificate", "root.pem", "--verify-purpose", dotted]
        done = subprocess.run([*command, "--infile", "chain.pem"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode != 0
    if shutil.which("certutil"):
        assert nss_verdict(tmp_path, store, chain, usage) != 0


@pytest.mark.skipif(shutil.which("certutil") is None, reason="certutil is not installed (Debian: libnss3-tools)")
def test_nss_accepts_a_leaf_of_ours_for_a_server(tmp_path: Path, keystore: Keystore, leaf_of: LeafOf) -> None:
    assert nss_verdict(tmp_path, keystore, leaf_of("www.origin.test").chain, "V") == 0


def nss_verdict(folder: Path, store: Keystore, chain: tuple[bytes, ...], usage: str) -> int:
    """certutil's status for the leaf under our root, trusted for servers, mail and code.

    Not for clients (T): what a CA is for matters nothing to NSS there, so no store of ours must say that.
    """
    database = f"sql:{folder}"
    subprocess.run(["certutil", "-N", "-d", database, "--empty-password"], check=True, capture_output=True)
    certificates = {"root": (store.root_pem, "C,C,C"), "issuing": (ssl.DER_cert_to_PEM_cert(chain[1]), ",,")}
    certificates["leaf"] = (ssl.DER_cert_to_PEM_cert(chain[0]), ",,")
    for name, (pem, trust) in certificates.items():
        command = ["certutil", "-A", "-d", database, "-n", name, "-t", trust, "-a"]
        subprocess.run(command, input=pem, text=True, check=True, capture_output=True)
    command = ["certutil", "-V", "-d", database, "-n", "leaf", "-u", usage]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_openssl_refuses_a_ca_below_the_issuing_ca(tmp_path: Path) -> None:
    """Path length 0 is enforced, not only written."""
    store = open_keystore(tmp_path / "ca", "host", int(time.time()))
    issuing = x509.load_pem_x509_certificate(store.issuing_pem.encode())
    key = serialization.load_pem_private_key((tmp_path / "ca" / "issuing.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = ec.generate_private_key(ec.SECP256R1())
    profile = IssuingProfile(common_name="rogue", validity=store.authority.validity)
    rogue = make_issuing(profile, issuing, key, own.public_key(), 2)
    leaf = leaf_profile(Name.of("a.test"), int(time.time()), store.authority.validity)
    chain = (*Authority(own, rogue).issue(leaf, ec.generate_private_key(ec.SECP256R1()).public_key(), 3),)
    assert "error 25" in openssl_verify(tmp_path, store, (*chain, store.authority.certificate))


def test_a_leaf_never_carries_the_cas_own_key(keystore: Keystore) -> None:
    profile = leaf_profile(Name.of("a.test"), int(time.time()), keystore.authority.validity)
    own = serialization.load_der_public_key(keystore.authority.public_key)
    assert isinstance(own, ec.EllipticCurvePublicKey)
    with pytest.raises(KeyRefused, match="own key"):
        keystore.authority.issue(profile, own, 1)


def test_the_ca_does_not_sign_an_untrusted_leaf(keystore: Keystore) -> None:
    profile = leaf_profile(Name.of("a.test"), int(time.time()), keystore.authority.validity, flaw=Flaw.UNTRUSTED)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(ValueError, match="not the CA's to sign"):
        keystore.authority.issue(profile, key, 1)
    first, second = untrusted_chain(profile, key, 1), untrusted_chain(profile, key, 1)
    assert len(first) == 1
    assert first != second  # another throw-away key each time


def test_an_authority_needs_the_key_of_its_certificate(keystore: Keystore) -> None:
    issuing = x509.load_pem_x509_certificate(keystore.issuing_pem.encode())
    with pytest.raises(ValueError, match="does not belong"):
        Authority(ec.generate_private_key(ec.SECP256R1()), issuing)


@pytest.mark.parametrize("random", [bytes(16), b"\xff" * 16, b"\x00" * 15 + b"\x01"])
def test_serials_are_positive_and_have_128_bits(random: bytes) -> None:
    assert serial_of(random).bit_length() == 128
