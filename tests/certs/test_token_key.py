"""A key in a token signs what a CA signs, and no part of it ever leaves."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from enterprise import certified, rsa_key
from softhsm import PIN, SoftHsm, needs_softhsm

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import MintQuestion
from mitmsec_certs import ceremony, token_key, token_session
from mitmsec_certs.authority import Authority, CaKey, spki_of
from mitmsec_certs.ceremony import CeremonyFailed
from mitmsec_certs.constraints import UNCONSTRAINED
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.profile import Name
from mitmsec_certs.signer import Mint
from mitmsec_certs.signing_request import signing_request
from mitmsec_certs.token_uri import parse

pytestmark = [pytest.mark.root, needs_softhsm]
DER = serialization.Encoding.DER
P384 = ec.generate_private_key(ec.SECP384R1())


def within(softhsm: SoftHsm, label: str, work: Callable[[CaKey], list[bytes]], *, makes: bool = False) -> list[bytes]:
    """What `work` came to with the key, in a process of its own. Raises CeremonyFailed with what was refused."""

    def there() -> list[bytes]:
        source = token_key.found_or_made if makes else token_key.opened
        return work(source(parse(softhsm.uri(label)), PIN, softhsm.module))

    return ceremony.in_child(there)


def public(key: CaKey) -> list[bytes]:
    return [spki_of(key.public_key())]


@pytest.mark.parametrize(
    "make", [lambda: ec.generate_private_key(ec.SECP256R1()), lambda: P384, rsa_key], ids=["p256", "p384", "rsa"]
)
def test_leaves_requests_and_lists_that_it_signs_are_good(
    softhsm: SoftHsm, make: Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]
) -> None:
    brought = make()
    softhsm.bring(brought, "issuing")
    issuing = certified("Corp Interception", None, key=brought).certificate

    def work(key: CaKey) -> list[bytes]:
        now_s = int(time.time())
        authority = Authority(key, issuing)
        pair = LeafKeys().of(LeafKeyKind.P256, now_s)
        leaf = Mint(authority).leaf(Name.of("www.corp.example"), pair, MintQuestion(number=1, flow="f"), now_s)
        revoked = authority.crl(now_s)
        assert revoked is not None
        return [leaf.chain[0], signing_request(key, "CA", UNCONSTRAINED), revoked[1]]

    leaf, request, revoked = within(softhsm, "issuing", work)
    x509.load_der_x509_certificate(leaf).verify_directly_issued_by(issuing)
    asked = x509.load_pem_x509_csr(request)
    assert asked.is_signature_valid
    assert asked.public_key() == brought.public_key()
    assert x509.load_der_x509_crl(revoked).is_signature_valid(brought.public_key())


@pytest.mark.checklist("K2")
def test_a_key_that_is_made_in_the_token_never_leaves_it_and_is_made_once(softhsm: SoftHsm) -> None:
    (made,) = within(softhsm, "issuing", public, makes=True)
    assert within(softhsm, "issuing", public, makes=True) == within(softhsm, "issuing", public) == [made]

    def attributes() -> list[bytes]:
        inside = token_session.session(parse(softhsm.uri("issuing")), PIN, softhsm.module)
        key = inside.get_key(object_class=token_key.ObjectClass.PRIVATE_KEY, label="issuing")
        names = (
            "SENSITIVE",
            "ALWAYS_SENSITIVE",
            "EXTRACTABLE",
            "NEVER_EXTRACTABLE",
            "SIGN",
            "DECRYPT",
            "DERIVE",
            "PRIVATE",
        )
        return [name.encode() for name in names if key[token_key.Attribute[name]]]

    told = ceremony.in_child(attributes)
    assert told == [b"SENSITIVE", b"ALWAYS_SENSITIVE", b"NEVER_EXTRACTABLE", b"SIGN", b"PRIVATE"]
    key = serialization.load_der_public_key(made)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_nothing_but_signing_can_be_asked_of_it(softhsm: SoftHsm) -> None:
    softhsm.bring(rsa_key(), "rsa", "b2")

    def work(key: CaKey) -> list[bytes]:
        with pytest.raises(UnsupportedAlgorithm):
            key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with pytest.raises(UnsupportedAlgorithm):
            key.private_numbers()
        with pytest.raises(TypeError):
            key.__reduce__()
        assert copy.copy(key) is copy.deepcopy(key) is key
        if isinstance(key, rsa.RSAPrivateKey):
            with pytest.raises(UnsupportedAlgorithm):
                key.decrypt(b"", padding.PKCS1v15())
            with pytest.raises(UnsupportedAlgorithm):
                key.sign(b"", padding.PKCS1v15(), hashes.SHA1())
        else:
            with pytest.raises(UnsupportedAlgorithm):
                key.exchange(ec.ECDH(), P384.public_key())
        return [b"held"]

    assert within(softhsm, "issuing", work, makes=True) == [b"held"]
    assert within(softhsm, "rsa", work) == [b"held"]


def test_keys_that_are_not_what_they_have_to_be(softhsm: SoftHsm) -> None:
    with pytest.raises(CeremonyFailed, match="no such private key"):
        within(softhsm, "none", public)
    unlabelled = parse(softhsm.uri("none").replace("object=none", "id=%77"))
    with pytest.raises(CeremonyFailed, match="say what to call it"):
        ceremony.in_child(lambda: public(token_key.found_or_made(unlabelled, PIN, softhsm.module)))
    for number in ("a1", "a2"):
        softhsm.bring(ec.generate_private_key(ec.SECP256R1()), "twice", number)
    with pytest.raises(CeremonyFailed, match="2 objects are called so"):
        within(softhsm, "twice", public)

    def loose() -> list[bytes]:
        inside = token_session.session(parse(softhsm.uri("x")), PIN, softhsm.module, writing=True)
        kinds = {token_key.Attribute.EC_PARAMS: token_key.P256}
        curve = inside.create_domain_parameters(token_key.KeyType.EC, kinds, local=True)
        leaves = {token_key.Attribute.EXTRACTABLE: True}
        curve.generate_keypair(label="loose", id=b"l", store=True, private_template=leaves)
        alone = curve.generate_keypair(label="alone", id=b"m", store=True)
        alone[0].destroy()
        return []

    ceremony.in_child(loose)
    with pytest.raises(CeremonyFailed, match="could be taken out of the token"):
        within(softhsm, "loose", public)
    with pytest.raises(CeremonyFailed, match="its public key is not in the token"):
        within(softhsm, "alone", public)


def test_a_token_that_is_taken_away_is_an_error_and_no_other_key_signs(softhsm: SoftHsm) -> None:
    within(softhsm, "issuing", public, makes=True)

    def work(key: CaKey) -> list[bytes]:
        for path in sorted(softhsm.tokens.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        with pytest.raises(token_key.TokenLost, match=r"pkcs11:token=mitmsec%20test;object=issuing\?"):
            signing_request(key, "CA", UNCONSTRAINED)
        return [b"told"]

    assert within(softhsm, "issuing", work) == [b"told"]
