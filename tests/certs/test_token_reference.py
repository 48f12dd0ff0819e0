"""What stands in issuing.key for a key in a token."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs.token_reference import (
    BadReference,
    TokenReference,
    is_reference,
    is_sealed,
    pin_flaw,
    read,
    uri_of,
    written,
)

NAMED = TokenReference(uri="pkcs11:token=t;object=o?module-path=/m.so", pin="2468")
SECRET = b"0" * 64


@given(st.text(), st.booleans(), st.none() | st.binary(min_size=1))
def test_what_is_written_is_read_as_it_was(pin: str, refused: bool, secret: bytes | None) -> None:
    named = TokenReference(uri=NAMED.uri, pin=pin.replace("\ud800", ""), pin_refused=refused)
    data = written(named, secret)
    assert is_reference(data)
    assert read(data, secret) == named
    assert uri_of(data) == named.uri
    assert is_sealed(data) is (secret is not None)


def test_a_sealed_pin_is_nowhere_in_the_file_and_opens_with_its_secret_alone() -> None:
    data = written(NAMED, SECRET)
    assert NAMED.pin.encode() not in data
    assert data != written(NAMED, SECRET)
    with pytest.raises(BadReference, match="was not brought"):
        read(data, None)
    with pytest.raises(BadReference, match="another secret"):
        read(data, b"1" * 64)


def test_a_sealed_pin_is_for_the_token_that_it_was_sealed_for() -> None:
    """Else who writes to the folder could have it sent to a module of another token."""
    kept = msgspec.json.decode(written(NAMED, SECRET))
    kept["pkcs11"] = NAMED.uri.replace("token=t", "token=u")
    with pytest.raises(BadReference, match="damaged"):
        read(msgspec.json.encode(kept), SECRET)


@given(st.binary())
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(BadReference):
        read(b'{"pkcs11":' + data + b"}", SECRET)


@pytest.mark.parametrize("data", [b"-----BEGIN PRIVATE KEY-----", b"", b"{}"])
def test_a_key_in_a_file_is_no_reference(data: bytes) -> None:
    assert not is_reference(data)


def test_pins() -> None:
    assert pin_flaw("1234") is None
    assert all(pin_flaw(pin) for pin in ("", "1\n2", "1" * 256))
