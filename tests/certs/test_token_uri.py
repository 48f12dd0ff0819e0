"""PKCS #11 URIs: what they say is understood, and what is not understood is refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs.token_uri import BadUri, TokenUri, parse

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=40)
maybe = st.just("") | texts
uris = st.builds(
    TokenUri,
    module=texts.map(lambda text: f"/{text}"),
    token=texts,
    serial=maybe,
    manufacturer=maybe,
    model=maybe,
    label=texts,
    id=st.binary(max_size=20),
)


def test_as_an_operator_writes_it() -> None:
    said = parse(f"pkcs11:token=Corp%20CA;object=issuing;id=%01%a2?module-path={MODULE}&pin-source=file:/root/pin")
    assert said == TokenUri(module=MODULE, token="Corp CA", label="issuing", id=b"\x01\xa2", pin_file="/root/pin")
    assert said.text == f"pkcs11:token=Corp%20CA;object=issuing;id=%01%A2?module-path={MODULE}"
    assert parse(f"pkcs11:serial=7;id=k;type=private?module-path={MODULE}") == TokenUri(
        module=MODULE, serial="7", id=b"k"
    )


@pytest.mark.parametrize("source", ["file:/root/pin", "file:///root/pin", "/root/pin"])
def test_where_the_pin_is(source: str) -> None:
    assert parse(f"pkcs11:token=t;object=o?pin-source={source}&module-path={MODULE}").pin_file == "/root/pin"


@given(uris)
def test_what_is_written_is_read_as_it_was(uri: TokenUri) -> None:
    assert parse(uri.text) == uri
    assert parse(uri.text.replace("?", "?pin-source=/pin&")) == msgspec.structs.replace(uri, pin_file="/pin")


@given(st.text(max_size=200) | st.text("pkcs11:tokenbjid=;?&%2a/-", max_size=80).map(lambda text: f"pkcs11:{text}"))
def test_whatever_is_said_it_is_a_key_or_an_error_in_words(text: str) -> None:
    with contextlib.suppress(BadUri):
        said = parse(text)
        assert parse(said.text).text == said.text


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("token=t;object=o", "begins with pkcs11:"),
        ("pkcs11:token=t;object=o", "module-path has to name"),
        ("pkcs11:token=t;object=o?module-path=lib.so", "full path"),
        (f"pkcs11:object=o?module-path={MODULE}", "which token"),
        (f"pkcs11:token=t?module-path={MODULE}", "which key"),
        (f"pkcs11:token=t;object?module-path={MODULE}", "object has no value"),
        (f"pkcs11:token=t;=o?module-path={MODULE}", "an attribute|not understood"),
        (f"pkcs11:token=t;token=u;object=o?module-path={MODULE}", "token is there twice"),
        (f"pkcs11:token=t;object=o;slot-id=3?module-path={MODULE}", "'slot-id' is not understood"),
        (f"pkcs11:token=t;object=o?module-path={MODULE}&module-name=x", "'module-name' is not understood"),
        (f"pkcs11:token=t;object=o;type=cert?module-path={MODULE}", "a private key"),
        (f"pkcs11:token=t%2;object=o?module-path={MODULE}", "token: a %"),
        (f"pkcs11:token=%FF;object=o?module-path={MODULE}", "no UTF-8"),
        (f"pkcs11:token=%00;object=o?module-path={MODULE}", "printable"),
        (f"pkcs11:token={'t' * 201};object=o?module-path={MODULE}", "at most 200"),
        (f"pkcs11:token=t;id={'t' * 201}?module-path={MODULE}", "at most 200 bytes"),
        (f"pkcs11:token=t;object=o?module-path={MODULE}&pin-source=pin", "pin-source has to name"),
        (f"pkcs11:token=t;object=o?module-path={MODULE}&pin-source=%7Ccat%20/pin", "pin-source has to name"),
    ],
)
def test_what_could_mean_another_key_is_refused(uri: str, why: str) -> None:
    with pytest.raises(BadUri, match=why):
        parse(uri)


def test_a_pin_on_the_command_line_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadUri, match="pin-value") as error:
        parse(f"pkcs11:token=t;object=o?module-path={MODULE}&pin-value=13579")
    assert "13579" not in str(error.value)
