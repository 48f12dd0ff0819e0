"""The request to an enterprise's CA, as OpenSSL reads it, and the answer to it."""

from __future__ import annotations

import subprocess
import time

from cryptography import x509
from enterprise import answer_to, p256, root

from mitmsec_certs.authority import spki_of
from mitmsec_certs.constraints import UNCONSTRAINED, written
from mitmsec_certs.signing_request import signing_request
from mitmsec_certs.sub_ca import sub_ca


def test_it_asks_for_no_more_than_is_needed() -> None:
    pem = signing_request(p256(), "mitmsec issuing host", written(["corp.example"], []))
    command = ["openssl", "req", "-noout", "-text", "-verify"]
    said = subprocess.run(command, input=pem, capture_output=True, check=True)
    text = (said.stdout + said.stderr).decode()
    assert "verify OK" in text
    for words in ("CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "TLS Web Server Authentication"):
        assert words in text
    assert "DNS:corp.example" in text
    assert (
        "Name Constraints"
        not in subprocess.run(
            command, input=signing_request(p256(), "m", UNCONSTRAINED), capture_output=True, check=True, text=False
        ).stdout.decode()
    )


def test_an_answer_that_grants_it_is_taken_without_a_doubt() -> None:
    key, above = p256(), root()
    answer = answer_to(signing_request(key, "mitmsec issuing host", written(["corp.example"], [])), above)
    certificates = [x509.load_pem_x509_certificate(answer), above.certificate]
    assert sub_ca(certificates, spki_of(key.public_key()), [], int(time.time())).doubts == ()
