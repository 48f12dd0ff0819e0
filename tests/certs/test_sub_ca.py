"""A CA below an enterprise's root: which are taken, which are doubted, which are refused and why."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from enterprise import DER, Made, between, certified, p256, root, rsa_key

from mitmsec_certs.sub_ca import SubCa, Unsuitable, sub_ca

NOW_S = int(time.time())
ROOT = root()
POLICY = between(ROOT)


def judged(sub: Made, *brought: Made, known: Sequence[Made] = (ROOT,)) -> SubCa:
    certificates = [one.certificate for one in (*brought, sub)]
    return sub_ca(certificates, sub.spki, [one.certificate.public_bytes(DER) for one in known], NOW_S)


def reasons(sub: Made, *brought: Made, known: Sequence[Made] = (ROOT,)) -> str:
    with pytest.raises(Unsuitable) as refused:
        judged(sub, *brought, known=known)
    return str(refused.value)


@pytest.mark.checklist("K3")
def test_a_limited_ca_is_taken_with_its_chain_in_order_and_without_a_doubt() -> None:
    sub = certified("Corp Interception", POLICY)
    for brought in ((ROOT, POLICY), (POLICY, ROOT), (POLICY,)):
        found = judged(sub, *brought)
        assert found.chain == (sub.pem, POLICY.pem)
        assert found.root == ROOT.pem
        assert found.doubts == ()


@pytest.mark.parametrize("make", [p256, lambda: ec.generate_private_key(ec.SECP384R1()), rsa_key])
def test_keys_that_it_may_have(make: Callable[[], Any]) -> None:
    assert judged(certified("sub", ROOT, key=make())).doubts == ()


DOUBTED = {
    "path length 0 is missing": {"path_length": None},
    "more than TLS servers": {"purposes": None},
    "should be serverAuth alone": {"purposes": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)},
    "may speak for every name": {"limit": None},
    "more than a year": {"days": (-1, 800)},
}


@pytest.mark.parametrize("words", DOUBTED)
def test_what_gives_more_than_is_needed_is_doubted(words: str) -> None:
    doubts = judged(certified("sub", ROOT, **DOUBTED[words])).doubts
    assert len(doubts) == 1
    assert words in doubts[0]


def test_limits_of_a_ca_above_count() -> None:
    above = between(ROOT, limit=x509.NameConstraints([x509.DNSName("corp.example")], None))
    assert judged(certified("sub", above, limit=None), above).doubts == ()


REFUSED: dict[str, dict[str, Any]] = {
    "sub is no CA": {"is_ca": False},
    "keyCertSign is missing": {"usage": False},
    "serverAuth is missing": {"purposes": (ExtendedKeyUsageOID.CODE_SIGNING,)},
    "is not valid now": {"days": (-300, -1)},
    "within two weeks": {"days": (-300, 13)},
    "no subject key identifier": {"has_key_identifier": False},
    "an RSA key of 1024 bits only": {"key": rsa_key(1024)},
    "neither RSA nor of the curves": {"key": ec.generate_private_key(ec.SECP224R1())},
    "not understood here": {"more": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b""), True)]},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_could_not_work_or_would_not_be_safe_is_refused(words: str) -> None:
    assert words in reasons(certified("sub", ROOT, **REFUSED[words]))


def test_a_weak_signature_is_refused() -> None:
    """SHA-224 stands for SHA-1 here, with which cryptography signs no more."""
    weak = certified("sub", ROOT, digest=hashes.SHA224())
    assert "SHA-256 or better" in reasons(weak)


def test_every_reason_is_told_at_once() -> None:
    told = reasons(certified("sub", ROOT, usage=False, days=(-300, -1)))
    assert "keyCertSign" in told
    assert "not valid now" in told


def test_a_ca_above_may_not_forbid_it() -> None:
    tight = between(ROOT, path_length=0)
    assert "allows a path length of 0, and 1 would be needed" in reasons(certified("sub", tight), tight)
    ended = between(ROOT, days=(-300, -1))
    assert "Corp Policy CA is not valid now" in reasons(certified("sub", ended), ended)


def test_a_root_itself_is_refused() -> None:
    assert "a root itself" in reasons(ROOT)


def test_another_key_is_told() -> None:
    sub = certified("sub", ROOT)
    with pytest.raises(Unsuitable, match="none of the certificates belongs to the key"):
        sub_ca([sub.certificate], certified("other", ROOT).spki, [], NOW_S)


def test_a_missing_link_is_named() -> None:
    assert "signed by CN=Corp Policy CA, which was not brought" in reasons(certified("sub", POLICY))
    assert "signed by CN=Corp Root" in reasons(certified("sub", POLICY), POLICY, known=[])


def test_a_ca_of_the_same_name_that_did_not_sign_is_no_link() -> None:
    assert "was not brought" in reasons(certified("sub", POLICY), between(root()), known=[root()])


def test_cas_that_sign_each_other_are_no_chain() -> None:
    one, two = p256(), p256()
    first = certified("one", Made(certified("two", None, key=two).certificate, two), key=one, path_length=None)
    second = certified("two", Made(certified("one", None, key=one).certificate, one), key=two, path_length=None)
    assert "circle" in reasons(certified("sub", first), first, second, known=[])


def test_a_chain_that_nobody_would_follow_is_not_followed_either() -> None:
    line = [ROOT]
    for number in range(12):
        line.append(certified(f"CA {number}", line[-1], path_length=None))
    assert "more than 8 CAs lie between" in reasons(certified("sub", line[-1]), *line[1:])


def test_an_ended_root_is_refused() -> None:
    old = root(days=(-4000, -1))
    assert "its root, has ended" in reasons(certified("sub", old), old, known=[])


def test_of_two_certificates_for_the_key_the_later_one_counts() -> None:
    key = p256()
    early, late = (certified("sub", ROOT, key=key, days=(-200, days)) for days in (100, 150))
    assert judged(early, late, ROOT).chain == (late.pem,)


def test_known_roots_that_cannot_be_read_are_passed_over() -> None:
    sub = certified("sub", ROOT)
    known = [b"nonsense", ROOT.certificate.public_bytes(DER)]
    assert sub_ca([sub.certificate], sub.spki, known, NOW_S).root == ROOT.pem


def test_a_signature_with_sha1_is_named_although_nobody_verifies_it_any_more(tmp_path: Path) -> None:
    sub = certified("sub", None)
    for name, pem in (("root.pem", ROOT.pem), ("root.key", ROOT.key_pem()), ("sub.pem", sub.pem)):
        (tmp_path / name).write_bytes(pem)
    order = "openssl x509 -in sub.pem -CA root.pem -CAkey root.key -set_serial 1 -sha1 -days 300"
    made = subprocess.run(order.split(), cwd=tmp_path, check=True, capture_output=True).stdout
    weak = dataclasses.replace(sub, certificate=x509.load_pem_x509_certificate(made))
    assert "not signed with SHA-256" in reasons(weak)


def test_an_issuer_of_the_same_name_with_another_key_is_told_of(recwarn: pytest.WarningsRecorder) -> None:
    """Nor does a root of this machine that has an old oddity make a noise."""
    order = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -outform DER -subj /CN=odd -set_serial 0"
    odd = subprocess.run(order.split(), check=True, capture_output=True).stdout
    sub = certified("sub", POLICY)
    with pytest.raises(Unsuitable, match="was brought has another key"):
        sub_ca([sub.certificate, between(ROOT).certificate], sub.spki, [odd], NOW_S)
    assert not recwarn.list
    with pytest.raises(Unsuitable, match="no certificate was brought"):
        sub_ca([], b"", [], NOW_S)
