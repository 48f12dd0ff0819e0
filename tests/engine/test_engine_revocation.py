"""What an origin's issuer says, and what the engine makes of it: staples, timestamps, roots that somebody installed."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from badssl import Category
from badssl_certificates import TLS_FEATURE_STAPLE, Certified, root
from badssl_revocation import DAY, now, ocsp_answer, stapling_server, timestamps
from badssl_table import through_the_engine
from engine_world import RealMint

from mitmsec.core.messages import TlsServerFacts
from mitmsec.core.model import Revocation, Transparency
from mitmsec_certs.upstream import Terms

NAME = "www.origin.test"
ROOT = root()
CA = ROOT.intermediate()
MUST = (TLS_FEATURE_STAPLE, False)
PLAIN, MUST_STAPLE = CA.leaf(NAME), CA.leaf(NAME, more=[MUST])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    RealMint(folder / "ca")
    return folder


def origin(leaf: Certified, staple: bytes = b"") -> Category:
    made = Category(id="one", why="", name=NAME, chain=(leaf, CA), store=(ROOT,))
    return replace(made, server=lambda category: stapling_server(category, staple)) if staple else made


def visited(category: Category, house: Path, **terms: Any) -> TlsServerFacts:
    """What is recorded. The client got a page exactly if it was verified."""
    seen, end = asyncio.run(through_the_engine(category, house, terms=Terms(**terms)))
    server: TlsServerFacts = end.tls.server
    assert isinstance(seen, bytes) is server.verified
    assert server.verified or isinstance(seen, ssl.SSLCertVerificationError)
    return server


@pytest.mark.checklist("U7")
@pytest.mark.parametrize("leaf", [PLAIN, MUST_STAPLE])
def test_an_origin_that_staples_its_own_revocation_is_refused(leaf: Certified, house: Path) -> None:
    server = visited(origin(leaf, ocsp_answer(leaf, CA, revoked=True)), house)
    assert server.error == "the certificate was revoked (OCSP)"


@pytest.mark.checklist("U7")
@pytest.mark.parametrize("leaf", [PLAIN, MUST_STAPLE])
def test_an_origin_with_a_good_staple_is_accepted(leaf: Certified, house: Path) -> None:
    assert visited(origin(leaf, ocsp_answer(leaf, CA)), house, revocation=Revocation.HARD).note is None


@pytest.mark.checklist("U7")
@pytest.mark.parametrize(
    "staple",
    [
        lambda: b"",
        lambda: ocsp_answer(MUST_STAPLE, CA, ends_days=-0.5),
        lambda: ocsp_answer(MUST_STAPLE, CA, signer=root()),
        lambda: ocsp_answer(PLAIN, CA),
        lambda: b"nonsense",
    ],
    ids=["none", "old", "forged", "another's", "nonsense"],
)
def test_must_staple_without_a_good_one_is_refused_however_soft_the_policy_is(
    staple: Callable[[], bytes], house: Path
) -> None:
    server = visited(origin(MUST_STAPLE, staple()), house, revocation=Revocation.SOFT)
    assert "stapled" in (server.error or "")
    assert visited(origin(MUST_STAPLE, staple()), house, revocation=Revocation.OFF).verified


def test_without_that_an_origin_need_not_staple(house: Path) -> None:
    assert visited(origin(PLAIN), house, revocation=Revocation.HARD).note is None
    assert visited(origin(PLAIN, b"nonsense"), house, revocation=Revocation.HARD).note is None


@pytest.mark.checklist("U11")
@pytest.mark.parametrize(
    ("stamps", "is_logged"),
    [
        (None, False),
        (timestamps(1), False),
        (timestamps(1, 1), False),
        (timestamps(1, 2, at=now() + 400 * DAY), False),
        (timestamps(1, 2, at=now() - 400 * DAY), False),
        (timestamps(1, 2), True),
    ],
    ids=["none", "one", "one log twice", "from the future", "from before it was made", "two"],
)
def test_a_public_roots_certificate_that_was_not_logged_is_reported_or_refused(
    stamps: Any, is_logged: bool, house: Path
) -> None:
    category = origin(CA.leaf(NAME, more=[stamps] if stamps else []))
    public = frozenset({hashlib.sha256(ROOT.der).hexdigest()})
    reported = visited(category, house, public_roots=public)
    assert (reported.verified, reported.note is None) == (True, is_logged)
    refused = visited(category, house, public_roots=public, sct=Transparency.REFUSE)
    assert (refused.verified, refused.error is None) == (is_logged, is_logged)
    assert visited(category, house, public_roots=public, sct=Transparency.OFF).note is None
    assert visited(category, house, sct=Transparency.REFUSE).verified, "a private root's need not be"


@pytest.mark.checklist("U11")
def test_timestamps_that_cannot_be_read_are_refused(house: Path) -> None:
    extension, critical = timestamps(1, 2)
    broken = type(extension)(extension.oid, extension.value[:-40])  # type: ignore[attr-defined, call-arg]
    server = visited(origin(CA.leaf(NAME, more=[(broken, critical)])), house)
    assert "cannot be read" in (server.error or "")


@pytest.mark.checklist("U6")
def test_a_root_that_is_not_among_the_policys_is_unknown_whoever_installed_it(house: Path) -> None:
    """`upstream_trust = "public"` leaves it out of what a worker gets (test_origin_roots): this is what follows."""
    category = replace(origin(PLAIN), store=(root("a public one"),))
    assert visited(category, house).error == "the issuer is unknown"
