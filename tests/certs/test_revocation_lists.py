"""Clients that insist on revocation lists find ours, and are content: OpenSSL, GnuTLS and Java."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from lists_stage import FIRST_PORT, lists_network, serving_lists

from mitmsec.core.crl_place import CRL_PLACE, crl_path
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.keystore import Keystore
from mitmsec_certs.truststore.java import java_options, java_truststore

CLIENT = """
import java.net.URI;
import javax.net.ssl.HttpsURLConnection;

public class Client {
    public static void main(String[] words) throws Exception {
        var connection = (HttpsURLConnection) URI.create(words[0]).toURL().openConnection();
        System.out.print(new String(connection.getInputStream().readAllBytes()));
    }
}
"""


@pytest.fixture
def lists(keystore: Keystore, tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    for path, der in keystore.crls(int(time.time())):
        (folder / path.removeprefix("/")).write_bytes(der)
    return folder


@pytest.mark.checklist("C5")
def test_every_certificate_below_the_root_says_where_its_list_is(
    keystore: Keystore, leaf_of: Callable[..., Any]
) -> None:
    """And the lists that are given out are those, each signed by whom it should be."""
    issuers = [keystore.issuing_pem, keystore.root_pem]
    chain = [*map(x509.load_der_x509_certificate, leaf_of("www.origin.test").chain)]
    given = dict(keystore.crls(int(time.time())))
    assert len(given) == 2
    for certificate, issuer_pem in zip(chain, issuers, strict=True):
        issuer = x509.load_pem_x509_certificate(issuer_pem.encode())
        (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert point.full_name is not None
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert point.full_name[0].value == f"http://{CRL_PLACE.address}{crl_path(identifier)}"
        revoked = x509.load_der_x509_crl(given[crl_path(identifier)])
        assert revoked.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        assert revoked.issuer == issuer.subject
        assert revoked.next_update_utc == issuer.not_valid_after_utc


@pytest.mark.checklist("C5")
def test_openssl_and_gnutls_are_content_with_the_lists(
    keystore: Keystore, leaf_of: Callable[..., Any], lists: Path, tmp_path: Path
) -> None:
    leaf, issuing = leaf_of("www.origin.test").chain
    (tmp_path / "root.pem").write_text(keystore.root_pem)
    (tmp_path / "issuing.pem").write_text(ssl.DER_cert_to_PEM_cert(issuing))
    (tmp_path / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(leaf))
    (tmp_path / "chain.pem").write_text(ssl.DER_cert_to_PEM_cert(leaf) + ssl.DER_cert_to_PEM_cert(issuing))
    crls = [x509.load_der_x509_crl(path.read_bytes()) for path in lists.iterdir()]
    (tmp_path / "crls.pem").write_bytes(b"".join(one.public_bytes(PEM) for one in crls))
    openssl = [
        "openssl",
        "verify",
        "-x509_strict",
        "-crl_check_all",
        "-CAfile",
        "root.pem",
        "-untrusted",
        "issuing.pem",
    ]
    without = subprocess.run([*openssl, "leaf.pem"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "unable to get certificate CRL" in without.stderr
    done = subprocess.run(
        [*openssl, "-CRLfile", "crls.pem", "leaf.pem"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "leaf.pem: OK\n", done.stderr
    if shutil.which("certtool"):
        command = ["certtool", "--verify", "--load-ca-certificate", "root.pem", "--load-crl", "crls.pem"]
        subprocess.run([*command, "--infile", "chain.pem"], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.root
@pytest.mark.checklist("C5")
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed (Debian: default-jre-headless)")
def test_java_that_insists_on_lists_fetches_ours_and_is_content(
    keystore: Keystore, leaf_of: Callable[..., Any], lists: Path, tmp_path: Path
) -> None:
    """A Java that may not fetch them refuses the same leaf: so it does insist."""
    (tmp_path / "Client.java").write_text(CLIENT)
    (tmp_path / "roots.p12").write_bytes(java_truststore(keystore.root_pem.encode()))
    options = f"{java_options(str(tmp_path / 'roots.p12'))} -Dcom.sun.net.ssl.checkRevocation=true"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def java(inside: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        told = environ | {"JAVA_TOOL_OPTIONS": " ".join((options, *more))}
        command = [*inside, "java", "Client.java", f"https://127.0.0.1:{FIRST_PORT}/"]
        return subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True, check=False)

    with lists_network() as inside, serving_lists(inside, lists, leaf_of("127.0.0.1").file) as asked:
        content = java(inside, "-Dcom.sun.security.enableCRLDP=true")
        refused = java(inside)
    assert content.stdout == "ok", content.stderr
    assert set(asked) == {f"/{path.name}" for path in lists.iterdir()}
    assert refused.returncode != 0
    assert "revocation" in refused.stderr.lower()
