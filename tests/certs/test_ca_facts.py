"""What anybody may know of a CA."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mitmsec_certs import succession
from mitmsec_certs.ca_facts import facts, facts_of, limits
from mitmsec_certs.ca_folder import About, CaKind, KeystoreRefused
from mitmsec_certs.ceremony import lasting
from mitmsec_certs.constraints import UNCONSTRAINED, written
from mitmsec_certs.keystore import open_keystore

NOW_S = int(time.time())


def test_where_there_is_no_ca_there_are_no_facts(tmp_path: Path) -> None:
    assert facts(tmp_path, NOW_S) is None
    with pytest.raises(KeystoreRefused):
        limits(tmp_path)


def test_the_facts_are_those_of_the_certificates(tmp_path: Path) -> None:
    store = open_keystore(tmp_path / "ca", "host", NOW_S)
    found = facts(tmp_path / "ca", NOW_S)
    assert found is not None
    root = x509.load_pem_x509_certificate(store.root_pem.encode())
    assert (found.kind, found.next, found.trusted) == ("automatic", None, (store.root_sha256,))
    assert found.root.sha256 == root.fingerprint(hashes.SHA256()).hex()
    assert int(found.root.serial, 16) == root.serial_number
    assert found.root.not_after == root.not_valid_after_utc.isoformat().replace("+00:00", "Z")
    assert (found.root.path_length, found.issuing.path_length) == (1, 0)
    assert (found.issuing.permitted, found.issuing.excluded) == ((), ())
    assert limits(tmp_path / "ca") == (UNCONSTRAINED, UNCONSTRAINED)
    assert facts_of(store.root_pem.encode()) == found.root


def test_a_ca_that_waits_is_told_with_its_limits(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    open_keystore(folder, "host", NOW_S)
    limit = written(["corp.example"], ["hr.corp.example"])
    root, issuing, _ = lasting(succession.prepare(folder), "host", NOW_S, limit, "correct horse battery")
    about = About(kind=CaKind.OWN, root_file="/mnt/usb/root.p12")
    succession.complete(folder, [issuing], about, root)
    found = facts(folder, NOW_S)
    assert found is not None
    assert found.next is not None
    assert (found.next.kind, found.next.root_file) == ("own", "/mnt/usb/root.p12")
    assert found.next.issuing.permitted == ("corp.example",)
    assert found.next.issuing.excluded == ("hr.corp.example",)
    assert found.trusted == (found.root.sha256, found.next.root.sha256)
