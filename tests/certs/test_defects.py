"""OpenSSL's verdict on an origin, in our words, and which of several counts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.messages import Flaw
from mitmsec_certs.defects import Defect, classify, gravest, of_codes


@pytest.mark.parametrize(
    ("code", "flaw"),
    [
        (9, Flaw.NOT_YET_VALID),
        (10, Flaw.EXPIRED),
        (62, Flaw.WRONG_NAME),
        (63, Flaw.WRONG_NAME),
        (64, Flaw.WRONG_NAME),
        (18, Flaw.UNTRUSTED),
        (19, Flaw.UNTRUSTED),
        (20, Flaw.UNTRUSTED),
        (21, Flaw.UNTRUSTED),
    ],
)
def test_the_kind_of_failure_that_each_code_is(code: int, flaw: Flaw) -> None:
    defect = classify(code)
    assert defect is not None
    assert defect.flaw is flaw
    assert str(code) not in defect.text


def test_ok_is_no_defect() -> None:
    assert classify(0) is None
    assert of_codes([0, 0]) == ()
    assert gravest([]) is None


@given(st.integers())
def test_a_code_that_nobody_knows_is_untrusted_never_fine(code: int) -> None:
    defect = classify(code)
    assert (defect is None) == (code == 0)
    if code not in range(100):
        assert defect is not None
        assert defect.flaw is Flaw.UNTRUSTED
        assert str(code) in defect.text


@given(st.permutations([0, 9, 10, 62, 20]))
def test_the_gravest_defect_does_not_depend_on_the_order(codes: list[int]) -> None:
    """A client must never be shown a smaller fault than the one it would have met."""
    defect = gravest(of_codes(codes))
    assert defect is not None
    assert defect.flaw is Flaw.UNTRUSTED
    without_trust = gravest(of_codes(code for code in codes if code != 20))
    assert without_trust is not None
    assert without_trust.flaw is Flaw.WRONG_NAME


def test_a_real_origin_that_nobody_trusts_is_untrusted(
    leaf_of: Callable[..., Any], serve: Callable[[Any], AbstractContextManager[Any]]
) -> None:
    """The chain of a CA that the client does not know, over a real handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with serve(leaf_of("origin.test")) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        with pytest.raises(ssl.SSLCertVerificationError) as failure:
            context.wrap_socket(client, server_hostname="origin.test")
    defect = classify(failure.value.verify_code)
    assert defect is not None
    assert (defect.flaw, defect.text) == (Flaw.UNTRUSTED, "the issuer is unknown")


def test_of_two_that_weigh_the_same_the_first_is_told() -> None:
    one, other = (Defect(flaw=Flaw.UNTRUSTED, text=text) for text in ("one", "other"))
    assert gravest([one, other]) is one
