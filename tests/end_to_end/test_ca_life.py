"""A CA of our own in use: limited, renewed beside a run that goes on, and every step and leaf on record."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Mitmsec, Network
from cryptography import x509

from mitmsec.core.crl_place import CRL_PLACE, crl_url

pytestmark = pytest.mark.root

PROGRAM = """
curl -sSv https://origin.test/hello 2>"$0/first"
curl -sS "$1" -o "$0/list"
curl -sSv https://six.test/hello 2>"$0/outside"
touch "$0/ready"
until test -e "$0/renewed"; do sleep 0.05; done
curl -sSv https://bank.test/hello 2>"$0/second"
"""


def issuer(said: Path) -> str:
    return next(line for line in said.read_text().splitlines() if "issuer:" in line).partition("issuer: ")[2]


@pytest.mark.checklist("K3", "K5", "K6")
def test_a_ca_of_our_own_from_its_making_over_its_renewal_to_the_record(
    mitmsec: Mitmsec, origin: Network, tmp_path: Path
) -> None:
    anywhere = ["ip", "-n", origin.name, "route", "replace", f"{CRL_PLACE.address}/32", "dev", "lo"]
    subprocess.run(anywhere, check=True)  # this network has no way out, and the hook leaves what has no route alone
    word, state = tmp_path / "word", ["--state", str(mitmsec.state)]
    word.write_text("correct horse battery")
    word.chmod(0o600)
    brought = ["--passphrase-file", str(word), "--root-file", str(tmp_path / "root.p12"), *state]

    def ca(*words: str) -> str:
        command = mitmsec.command("ca", *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=mitmsec.environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path / "root.p12") in ca("init", "--permit", "origin.test", "--permit", "bank.test", *brought)
    root = x509.load_pem_x509_certificate((mitmsec.state / "ca" / "root.pem").read_bytes())
    key = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    with mitmsec.start("sh", "-c", PROGRAM, str(tmp_path), crl_url(key)) as running:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        ca("rotate", *brought)
        (tmp_path / "renewed").touch()
        out, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert out.count("hello over") == 2
    first, second = issuer(tmp_path / "first"), issuer(tmp_path / "second")
    assert first != second
    assert {first[: len("CN=mitmsec issuing")], second[: len("CN=mitmsec issuing")]} == {"CN=mitmsec issuing"}
    assert x509.load_der_x509_crl((tmp_path / "list").read_bytes()).is_signature_valid(root.public_key())  # type: ignore[arg-type]
    assert "reset" in (tmp_path / "outside").read_text()
    assert [event["operation"] for event in mitmsec.of_kind("ca")] == ["initialised", "issuing_rotated"]
    faults = [event["detail"] for event in mitmsec.of_kind("fault") if event["what"] == "decision_refused"]
    assert len(faults) == 1
    assert faults[0].startswith("six.test is outside")
    leaves = [json.loads(line) for line in ca("issued", "--json", *state).splitlines()]
    assert [leaf["names"] for leaf in leaves] == [["origin.test"], ["bank.test"]]
    assert {leaf["process"]["name"] for leaf in leaves} == {"curl"}
    assert {leaf["rule"] for leaf in leaves} == {"defaults"}
