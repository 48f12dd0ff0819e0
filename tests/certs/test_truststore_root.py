"""A root is one certificate."""

from __future__ import annotations

import hashlib
import ssl
import time
from pathlib import Path

import pytest
from trust_stage import new_root, some_root

from mitmsec_certs.ca_folder import NEXT
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.truststore.root import root_of, roots_of


def test_a_root_is_read_from_its_certificate() -> None:
    root = some_root()
    assert root.sha256 == hashlib.sha256(ssl.PEM_cert_to_DER_cert(root.pem)).hexdigest()
    assert "machine.example" in root.subject
    assert root.not_after.endswith("Z")
    assert root_of(root.pem.encode()) == root


@pytest.mark.parametrize("pem", ["", "nothing", new_root().pem + new_root().pem], ids=["empty", "text", "two"])
def test_anything_else_is_none(pem: str) -> None:
    with pytest.raises(ValueError):
        root_of(pem.encode())


def test_the_roots_of_a_ca_are_its_own_and_the_one_that_waits(tmp_path: Path) -> None:
    assert roots_of(tmp_path) == []
    own = root_of(open_keystore(tmp_path, "machine.example", int(time.time())).root_pem.encode())
    assert roots_of(tmp_path) == [own]
    (tmp_path / NEXT).mkdir(mode=0o700)
    following = open_keystore(tmp_path / NEXT, "machine.example", int(time.time())).root_pem
    assert roots_of(tmp_path) == [own, root_of(following.encode())]
