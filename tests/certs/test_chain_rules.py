"""What a chain must be besides verified."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core.messages import Flaw
from mitmsec_certs.chain_rules import ANY_PURPOSE, SERVER, Link, forbidden, omissions, weaknesses

P256 = Link(common_name="", sha256="", key_sha256="", key="EC", bits=256, curve="secp256r1", digest="sha256")
LEAF = replace(P256, common_name="www.origin.test", key_sha256="leaf", is_ca=False, may_sign=False,
               may_shake_hands=True, purposes=(SERVER,))  # fmt: skip
CA = replace(P256, common_name="a CA", key_sha256="ca", is_ca=True, may_sign=True, may_shake_hands=False)
ROOT = replace(CA, common_name="a root", key_sha256="root")
RSA = {"key": "RSA", "curve": "", "exponent": 65537}


def told(*chain: Link) -> list[str]:
    found = list(weaknesses(chain))
    assert all(defect.flaw is Flaw.UNTRUSTED for defect in found)
    return [defect.text for defect in found]


def test_a_chain_as_it_should_be() -> None:
    assert told(LEAF, CA, ROOT) == told(LEAF, ROOT) == []


@pytest.mark.parametrize(
    "good",
    [
        {**RSA, "bits": 2048},
        {**RSA, "bits": 8192},
        {**RSA, "bits": 2048, "exponent": 3},
        {"curve": "secp521r1"},
        {"curve": "brainpoolP256r1"},
        {"key": "Ed25519", "curve": "", "digest": "none"},
        {"key": "ML-DSA", "curve": "", "digest": "none"},
        {"digest": "sha3-256"},
    ],
)
def test_strong_keys_and_digests(good: dict[str, object]) -> None:
    assert told(replace(LEAF, **good), replace(CA, **good), ROOT) == []


@pytest.mark.parametrize(
    ("weak", "text"),
    [
        ({**RSA, "bits": 2047}, "RSA, 2047 bits, exponent 65537"),
        ({**RSA, "bits": 4096, "exponent": 1}, "exponent 1"),
        ({"curve": "secp192r1"}, "curve secp192r1"),
        ({"curve": "secp256k1"}, "curve secp256k1"),
        ({"curve": ""}, "curve unknown"),
        ({"key": "DSA"}, "DSA"),
        ({"key": "1.2.3"}, "1.2.3"),
    ],
)
def test_a_weak_key_is_refused_wherever_it_is(weak: dict[str, object], text: str) -> None:
    (leaf,) = told(replace(LEAF, **weak), CA, ROOT)
    (ca,) = told(LEAF, replace(CA, **weak), ROOT)
    (root,) = told(LEAF, CA, replace(ROOT, **weak))
    (alone,) = told(replace(LEAF, **weak))
    assert text in leaf
    assert leaf == alone
    assert ca == root == leaf.replace("the certificate's", "a CA's")


@pytest.mark.parametrize("digest", ["md5", "sha1", "sha224", ""])
def test_a_weak_signature_counts_but_for_the_roots_own(digest: str) -> None:
    weak = f"a signature's digest is too weak ({digest or 'unknown'})"
    assert told(replace(LEAF, digest=digest), CA, ROOT) == told(LEAF, replace(CA, digest=digest), ROOT) == [weak]
    assert told(LEAF, CA, replace(ROOT, digest=digest)) == []


@pytest.mark.parametrize("is_ca", [False, None])
def test_an_issuer_says_that_it_is_a_ca(is_ca: bool | None) -> None:
    assert told(LEAF, replace(CA, is_ca=is_ca), ROOT) == ["an issuer is no CA"]


def left_out(*chain: Link) -> list[str]:
    return [defect.text for defect in omissions(chain)]


def test_an_issuer_that_may_not_sign() -> None:
    assert told(LEAF, replace(CA, may_sign=False), ROOT) == ["an issuer may not sign certificates"]
    assert told(LEAF, replace(ROOT, may_sign=False)) == ["an issuer may not sign certificates"]


def test_who_does_not_say_what_its_key_is_for_has_left_it_out() -> None:
    silent = replace(CA, may_sign=None)
    assert told(LEAF, silent, ROOT) == []
    assert left_out(LEAF, silent, ROOT) == ["an issuer does not say that it may sign certificates (keyUsage)"]
    assert left_out(LEAF, CA, ROOT) == []


def test_an_old_root_says_nothing() -> None:
    old = replace(ROOT, is_ca=None, may_sign=None)
    assert told(LEAF, old) == left_out(LEAF, old) == []


@pytest.mark.parametrize(("purposes", "count"), [((), 1), (("1.2.3",), 1), ((ANY_PURPOSE,), 0), (("1.2.3", SERVER), 0)])
def test_an_origins_certificate_is_for_servers(purposes: tuple[str, ...], count: int) -> None:
    assert len(told(replace(LEAF, purposes=purposes), ROOT)) == count


def test_one_that_does_not_say_so_has_left_it_out() -> None:
    silent = replace(LEAF, purposes=None)
    assert told(silent, ROOT) == []
    assert left_out(silent, ROOT) == ["the certificate does not say what it is for (extendedKeyUsage)"]
    assert left_out(silent) == left_out() == []


def test_a_key_that_is_not_for_handshakes() -> None:
    assert len(told(replace(LEAF, may_shake_hands=False), ROOT)) == 1
    assert told(replace(LEAF, may_shake_hands=None), ROOT) == []


def test_a_certificate_that_is_itself_trusted_is_asked_for_its_key_only() -> None:
    assert told(replace(LEAF, purposes=None, may_shake_hands=False, digest="sha1")) == []
    assert told() == []


@given(st.permutations([LEAF, CA, ROOT]), st.sampled_from(["leaf", "ca", "root"]))
def test_our_own_key_is_refused_wherever_it_is(chain: list[Link], own: str) -> None:
    found = list(forbidden(tuple(chain), frozenset({own, "another"})))
    assert [defect.text for defect in found] == ["the certificate comes from mitmsec's own CA"]
    assert not list(forbidden(tuple(chain), frozenset({"another"})))


def test_known_interceptors_are_refused_wherever_they_are() -> None:
    (found,) = forbidden((LEAF, replace(ROOT, common_name="eDellRoot")), frozenset())
    assert "eDellRoot" in found.text
