"""The keys of leaves: of today, of the kind that is asked for, and nobody else's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec_certs.authority import spki_of
from mitmsec_certs.leaf_keys import KEY_USE_S, LeafKeys

NOW_S = 1_800_000_000


@pytest.mark.checklist("C3")
def test_a_leafs_key_is_p256_or_rsa_of_2048_bits() -> None:
    keys = LeafKeys()
    short = serialization.load_der_private_key(keys.of(LeafKeyKind.P256, NOW_S).private_key, None)
    long = serialization.load_der_private_key(keys.of(LeafKeyKind.RSA2048, NOW_S).private_key, None)
    assert isinstance(short, ec.EllipticCurvePrivateKey)
    assert isinstance(short.curve, ec.SECP256R1)
    assert isinstance(long, rsa.RSAPrivateKey)
    assert (long.key_size, long.public_key().public_numbers().e) == (2048, 65537)
    for key, pair in ((short, keys.of(LeafKeyKind.P256, NOW_S)), (long, keys.of(LeafKeyKind.RSA2048, NOW_S))):
        assert pair.public_key == spki_of(key.public_key()) == spki_of(pair.public)


def test_there_is_another_key_each_day_and_after_a_great_leap_of_the_clock() -> None:
    keys = LeafKeys()
    first = keys.of(LeafKeyKind.P256, NOW_S)
    assert keys.of(LeafKeyKind.P256, NOW_S + KEY_USE_S - 1) is first
    second = keys.of(LeafKeyKind.P256, NOW_S + KEY_USE_S)
    assert second.public_key != first.public_key
    assert keys.of(LeafKeyKind.P256, NOW_S + 1) is second  # a clock that is set back a little changes nothing
    assert keys.of(LeafKeyKind.P256, NOW_S - KEY_USE_S) is not second


def test_no_two_runs_have_a_key_in_common() -> None:
    assert LeafKeys().of(LeafKeyKind.P256, NOW_S).public_key != LeafKeys().of(LeafKeyKind.P256, NOW_S).public_key


@pytest.mark.checklist("K1")
@pytest.mark.parametrize("package", ["mitmsec", "mitmsec_addons", "mitmsec_certs", "mitmsec_redirect"])
def test_no_key_comes_with_the_package(package: str) -> None:
    """Neither as PEM, whatever the file is called, nor as a file of a kind that holds keys."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    files = [path for path in Path(spec.origin).parent.rglob("*") if path.is_file()]
    assert len(files) > 5
    key = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}")
    assert key.search(b"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIIIIIIIIII\n")
    assert [path for path in files if key.search(path.read_bytes())] == []
    assert [path for path in files if path.suffix in {".key", ".p12", ".pfx", ".pem", ".der", ".jks"}] == []
