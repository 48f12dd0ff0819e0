"""Name constraints in certificates: what OpenSSL and GnuTLS make of them is what we say of them."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from limited_authorities import NOW_S, Authorities, serial

from mitmsec.core.messages import Flaw
from mitmsec_certs.authority import NameRefused
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.constraint_extension import constraints_of, extension_of, limits_subjects
from mitmsec_certs.constraints import EVERY_ADDRESS, UNCONSTRAINED, Constraints, written
from mitmsec_certs.profile import Name, leaf_profile

NAMES = ("www.corp.example", "corp.example", "hr.corp.example", "acorp.example", "other.test", "10.1.2.3", "10.9.0.1",
         "192.0.2.1", "2001:db8::1", "::1")  # fmt: skip
LIMITS = (
    written(["corp.example"], []),
    written(["corp.example"], ["hr.corp.example"]),
    written([], ["corp.example", "10.0.0.0/8"]),
    written(["10.0.0.0/8"], ["10.9.0.0/16"]),
    written(["corp.example", "2001:db8::/32"], []),
    UNCONSTRAINED,
)


def openssl_accepts(folder: Path, root: x509.Certificate, chain: tuple[bytes, ...], name: str) -> str:
    (folder / "root.pem").write_bytes(root.public_bytes(PEM))
    (folder / "sent.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, chain[1:])))
    (folder / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(chain[0]))
    option = "-verify_ip" if Name.of(name).is_address else "-verify_hostname"
    command = ["openssl", "verify", "-purpose", "sslserver", "-x509_strict", "-CAfile", "root.pem", option, name]
    done = subprocess.run(
        [*command, "-untrusted", "sent.pem", "leaf.pem"], cwd=folder, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.checklist("K3")
@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: " ".join((*limit.permitted, "-", *limit.excluded)))
def test_openssl_accepts_exactly_the_names_that_we_say_are_allowed(tmp_path: Path, limit: Constraints) -> None:
    """Even from an issuing CA that signs all that it is asked: the certificate itself binds it."""
    made = Authorities(limit)
    accepted = {name: not openssl_accepts(tmp_path, made.root, made.chain(name), name) for name in NAMES}
    assert accepted == {name: limit.allow(name) for name in NAMES}


@pytest.mark.skipif(shutil.which("certtool") is None, reason="certtool is not installed (Debian: gnutls-bin)")
def test_gnutls_accepts_exactly_the_same_host_names(tmp_path: Path) -> None:
    for limit in LIMITS:
        made = Authorities(limit)
        (tmp_path / "root.pem").write_bytes(made.root.public_bytes(PEM))
        for name in (name for name in NAMES if not Name.of(name).is_address):
            (tmp_path / "chain.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, made.chain(name))))
            command = ["certtool", "--verify", "--load-ca-certificate", "root.pem", "--infile", "chain.pem"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
            assert (done.returncode == 0) is limit.allow(name), (limit, name, done.stdout)


def test_a_mirrored_wrong_name_stays_a_wrong_name_under_constraints(tmp_path: Path) -> None:
    """Not a violation of the CA's constraints, which would be our fault and not the origin's."""
    made = Authorities(written(["corp.example"], []))
    chain = made.chain("www.corp.example", Flaw.WRONG_NAME)
    assert "error 62 at 0 depth" in openssl_accepts(tmp_path, made.root, chain, "www.corp.example")


def test_an_authority_refuses_what_is_outside() -> None:
    made = Authorities(written(["corp.example"], []))
    profile = leaf_profile(Name.of("www.other.test"), NOW_S, made.authority.validity)
    with pytest.raises(NameRefused, match=r"www\.other\.test is outside"):
        made.authority.issue(profile, ec.generate_private_key(ec.SECP256R1()).public_key(), serial())
    made.authority.require_allowed(Name.of("www.corp.example"))


@given(
    st.sets(st.sampled_from(["a.example", "b.example", "10.0.0.0/8", "2001:db8::/32"])),
    st.sets(st.sampled_from(["x.a.example", "10.1.0.0/16"])),
)
def test_what_is_written_is_what_is_read(permit: set[str], exclude: set[str]) -> None:
    limit = written(sorted(permit), sorted(exclude))
    assert constraints_of(certificate_with(extension_of(limit))) == limit


def certificate_with(extension: x509.NameConstraints | None) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial())
    builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC)).not_valid_after(
        datetime(2027, 1, 1, tzinfo=UTC)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256())


def test_another_cas_constraint_on_names_alone_leaves_addresses_free() -> None:
    """As RFC 5280 has it: of a kind that is not mentioned, everything is permitted."""
    names = x509.NameConstraints([x509.DNSName("corp.example")], None)
    assert constraints_of(certificate_with(names)).permitted_networks == EVERY_ADDRESS
    assert constraints_of(certificate_with(names)).allow("192.0.2.1")
    networks = x509.NameConstraints([x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))], None)
    assert constraints_of(certificate_with(networks)).allow("www.example")


def test_a_ca_that_limits_subjects_gets_leaves_without_one() -> None:
    organisation = x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Corp")]))
    assert limits_subjects(certificate_with(x509.NameConstraints([organisation], None)))
    assert not limits_subjects(certificate_with(extension_of(written(["corp.example"], []))))
    assert not limits_subjects(certificate_with(None))
