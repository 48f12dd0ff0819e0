"""The mirror of badssl.com through the engine: what is recorded of each origin, and what its client is shown."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from badssl import Category
from badssl_categories import certificate_categories
from badssl_certificates import Certified, ec_key
from badssl_handshakes import handshake_categories
from badssl_table import through_the_engine
from cryptography import x509
from engine_world import RealMint, world

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import Flaw, FlowEnded
from mitmsec.core.model import Upstream
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.profile import Name, leaf_profile

SHOWN = {
    Flaw.EXPIRED: {10},
    Flaw.NOT_YET_VALID: {9},
    Flaw.WRONG_NAME: {62, 64},
    Flaw.UNTRUSTED: {18, 19, 20, 21},
}
CPU_LIMIT_S = 1.0


def _row(one: Category, *more: str) -> Any:
    lines = pytest.mark.checklist(*one.checklist, *more)
    is_missing = pytest.mark.skipif(bool(one.lacks), reason=one.lacks)
    return pytest.param(one, id=one.id, marks=[is_missing, *([lines] if one.checklist else [])])


CERTIFICATES = [_row(one, "U13") for one in certificate_categories()]
HANDSHAKES = [_row(one) for one in handshake_categories()]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where our CA is, made before any thread begins."""
    folder = tmp_path_factory.mktemp("house")
    RealMint(folder / "ca")
    return folder


@pytest.mark.parametrize("category", [*CERTIFICATES, *HANDSHAKES])
def test_every_bad_origin_is_refused_and_every_good_one_accepted(category: Category, house: Path) -> None:
    begun_s = time.process_time()
    seen, end = asyncio.run(through_the_engine(category, house))
    assert time.process_time() - begun_s < CPU_LIMIT_S
    assert end.tls is not None
    server = end.tls.server
    assert server is not None
    if category.is_good:
        assert isinstance(seen, bytes), (seen, server)
        assert (server.verified, server.error) == (True, None)
        return
    assert not isinstance(seen, bytes)
    assert server.verified is False
    assert category.error in (server.error or "")
    if end.outcome == Outcome.ORIGIN_CERTIFICATE:
        assert category.flaw is not None
        assert isinstance(seen, ssl.SSLCertVerificationError)
        assert seen.verify_code in SHOWN[category.flaw]
    else:
        assert category.breaks
        assert end.outcome in {Outcome.MALFORMED, Outcome.ORIGIN_REFUSED}


def _our_own(house: Path, name: str) -> Category:
    """An origin with a leaf of ours, whose root the store has."""
    keystore = open_keystore(house / "ca", "test", int(time.time()))
    key = ec_key()
    profile = leaf_profile(Name.of(name), int(time.time()), keystore.authority.validity)
    ders = keystore.authority.issue(profile, key.public_key(), 12345)
    root_of_ours = x509.load_pem_x509_certificate(keystore.root_pem.encode())
    chain = [Certified(x509.load_der_x509_certificate(der), key) for der in ders]
    return Category(id="own-ca", why="", name=name, chain=chain, store=(Certified(root_of_ours, key),))


@pytest.mark.checklist("U5", "U16")
def test_an_origin_with_a_certificate_of_our_own_ca_is_refused_though_the_store_has_its_root(house: Path) -> None:
    name = "own.badssl.test"
    seen, end = asyncio.run(through_the_engine(_our_own(house, name), house))
    assert isinstance(seen, ssl.SSLCertVerificationError)
    assert seen.verify_code in SHOWN[Flaw.UNTRUSTED]
    assert end.tls is not None
    assert end.tls.server is not None
    assert (end.tls.server.verified, "own CA" in (end.tls.server.error or "")) == (False, True)


BAD = {one.id: one for one in certificate_categories() if one.flaw is not None}
ONE_OF_EACH = ["expired", "not-yet-valid", "wrong.host", "untrusted-root", "self-signed", "wrong-eku"]


@pytest.mark.checklist("U13", "U14")
@pytest.mark.parametrize("label", ONE_OF_EACH)
def test_where_the_policy_blocks_there_is_nothing_to_click_away(label: str, house: Path) -> None:
    """No certificate at all: a reset, before the client has seen one."""
    seen, end = asyncio.run(through_the_engine(BAD[label], house, upstream=Upstream.BLOCK))
    assert isinstance(seen, ConnectionResetError)
    assert (end.outcome, end.error) == (Outcome.ORIGIN_CERTIFICATE, _recorded(end))


@pytest.mark.parametrize("label", ONE_OF_EACH)
def test_where_the_policy_accepts_the_record_says_what_was_accepted(label: str, house: Path) -> None:
    seen, end = asyncio.run(through_the_engine(BAD[label], house, upstream=Upstream.ACCEPT))
    assert isinstance(seen, bytes)
    assert BAD[label].error in _recorded(end)


@pytest.mark.checklist("U13", "U14")
@pytest.mark.parametrize("label", ONE_OF_EACH)
def test_who_ignores_the_failure_gets_no_valid_looking_certificate(label: str, house: Path) -> None:
    """curl -k: what it is shown verifies under no store, ours and the origin's included."""
    category = BAD[label]

    async def main() -> x509.Certificate:
        with category.serving() as port:
            async with world(house, port, roots_pem=category.store_pem) as made:
                made.name = category.name
                blind = ssl.create_default_context()
                blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
                _, writer = await asyncio.open_connection("127.0.0.1", made.port, ssl=blind, server_hostname=made.name)
                shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                writer.close()
                await made.end()
                return x509.load_der_x509_certificate(shown)

    shown = asyncio.run(main())
    keystore = open_keystore(house / "ca", "test", int(time.time()))
    issuing = x509.load_der_x509_certificate(keystore.authority.certificate)
    now = datetime.datetime.now(datetime.UTC)
    is_in_time = shown.not_valid_before_utc <= now <= shown.not_valid_after_utc
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    is_for_it = category.name in names.get_values_for_type(x509.DNSName)
    assert not (shown.issuer == issuing.subject and is_in_time and is_for_it)


def _recorded(end: FlowEnded) -> str:
    assert end.tls is not None
    assert end.tls.server is not None
    assert end.tls.server.verified is False
    return end.tls.server.error or ""
