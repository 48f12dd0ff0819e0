"""Java really reads the trust store."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec_certs.bundle import roots_as_used, with_root
from mitmsec_certs.keystore import Keystore
from mitmsec_certs.truststore.java import PASSWORD, VARIABLE, java_options, java_truststore

PROGRAM = """
import java.net.URI;
import javax.net.ssl.HttpsURLConnection;

public class Client {
    public static void main(String[] words) throws Exception {
        var connection = (HttpsURLConnection) URI.create(words[0]).toURL().openConnection();
        System.out.print(new String(connection.getInputStream().readAllBytes()));
    }
}
"""

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")


def java(folder: Path, port: int, options: str | None) -> subprocess.CompletedProcess[str]:
    (folder / "Client.java").write_text(PROGRAM)
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)} | ({VARIABLE: options} if options else {})
    command = ["java", "Client.java", f"https://127.0.0.1:{port}/"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


@needs_java
def test_java_trusts_our_leaf_with_the_store_and_not_without(keystore: Keystore, https: Any, tmp_path: Path) -> None:
    """The path holds a space, and the caller's own options stay."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "roots.p12").write_bytes(java_truststore(keystore.root_pem.encode()))
    untold = java(folder, https.port, None)
    told = java(folder, https.port, "-Xmx128m " + java_options(str(folder / "roots.p12")))
    assert untold.returncode != 0
    assert "PKIX path building failed" in untold.stderr
    assert told.stdout == "ok\n", told.stderr
    assert "-Xmx128m" in told.stderr


@pytest.mark.skipif(shutil.which("keytool") is None, reason="keytool is not installed")
def test_javas_keytool_lists_every_root(keystore: Keystore, tmp_path: Path) -> None:
    bundle = roots_as_used({})
    (tmp_path / "roots.p12").write_bytes(java_truststore(with_root(bundle, keystore.root_pem)))
    command = ["keytool", "-list", "-keystore", str(tmp_path / "roots.p12"), "-storepass", PASSWORD]
    done = subprocess.run(command, capture_output=True, text=True)
    expected = len(pkcs12.load_pkcs12((tmp_path / "roots.p12").read_bytes(), PASSWORD.encode()).additional_certs)
    assert done.stdout.count("trustedCertEntry") == expected > len(bundle.roots) * 0.9, done.stdout


def test_a_root_that_cannot_be_parsed_is_left_out(keystore: Keystore) -> None:
    empty_parts = ssl.DER_cert_to_PEM_cert(b"0\x07" + b"0\x00" + b"0\x00" + b"\x03\x01\x00")
    store = java_truststore((empty_parts + keystore.root_pem).encode())
    assert [entry.certificate for entry in pkcs12.load_pkcs12(store, PASSWORD.encode()).additional_certs] == [
        x509.load_pem_x509_certificate(keystore.root_pem.encode())
    ]


def test_the_path_is_quoted() -> None:
    assert java_options("/r/roots.p12").startswith('"-Djavax.net.ssl.trustStore=/r/roots.p12" ')


def test_a_path_with_quotes_is_quoted_with_the_others() -> None:
    assert java_options('/a"b/roots.p12').startswith("'-Djavax.net.ssl.trustStore=/a\"b/roots.p12'")
    with pytest.raises(ValueError, match="quotes"):
        java_options("/a\"b'c/roots.p12")
