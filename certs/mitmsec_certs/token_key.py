"""The issuing key in a token: what signs looks like any other key, but no part of it is ever here.

    cryptography's builders ── bytes to be signed, algorithm ──► sign() ── digest ──► C_Sign ──► signature
                                                                  └── software keys have the same method

A token's refusal or absence is an error (TokenLost). Nothing else ever signs in its place.
"""

from __future__ import annotations

from typing import Any, NoReturn

import pkcs11
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from mitmsec.core.token_module import TokenModule
from mitmsec_certs.authority import CaKey
from mitmsec_certs.token_session import TokenRefused, failing, session
from mitmsec_certs.token_uri import TokenUri

CURVES: dict[bytes, ec.EllipticCurve] = {  # by the DER of their object identifiers
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}
P256 = next(iter(CURVES))
RSA_MECHANISMS = {
    "sha256": Mechanism.SHA256_RSA_PKCS,
    "sha384": Mechanism.SHA384_RSA_PKCS,
    "sha512": Mechanism.SHA512_RSA_PKCS,
}


class TokenLost(TokenRefused):
    """A token that was open does not sign any more: removed, locked, broken."""


class _InToken:
    """What both kinds of key share."""

    def __init__(self, uri: TokenUri, key: Any) -> None:
        self._uri, self._key = uri, key

    def _sign(self, data: bytes, mechanism: Mechanism) -> bytes:
        with failing(self._uri, TokenLost):
            signature: bytes = self._key.sign(data, mechanism=mechanism)
        return signature

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key in a token cannot be copied")


class TokenEcKey(_InToken, ec.EllipticCurvePrivateKey):
    """ECDSA. The digest is made here: not every token knows a mechanism that does both."""

    def __init__(self, uri: TokenUri, key: Any, public: ec.EllipticCurvePublicKey) -> None:
        super().__init__(uri, key)
        self._public = public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER. Raises TokenLost."""
        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise UnsupportedAlgorithm("a digest that was made elsewhere is not signed")
        digest = hashes.Hash(algorithm)
        digest.update(data)
        size_bytes = (self.key_size + 7) // 8
        signature = self._sign(digest.finalize()[:size_bytes], Mechanism.ECDSA)
        half = len(signature) // 2
        return utils.encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def exchange(self, algorithm: Any, peer_public_key: Any) -> NoReturn:
        raise UnsupportedAlgorithm("a CA's key signs and does nothing else")

    def private_numbers(self) -> NoReturn:
        raise UnsupportedAlgorithm("the key is in a token and does not leave it")

    def private_bytes(self, *how: Any, **named: Any) -> NoReturn:
        self.private_numbers()

    def __copy__(self) -> TokenEcKey:
        return self

    def __deepcopy__(self, memo: Any) -> TokenEcKey:
        return self


class TokenRsaKey(_InToken, rsa.RSAPrivateKey):
    """RSA with PKCS #1 v1.5, as certificates have it."""

    def __init__(self, uri: TokenUri, key: Any, public: rsa.RSAPublicKey) -> None:
        super().__init__(uri, key)
        self._public = public

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:
        """Raises TokenLost."""
        if not _is_usual(padding) or getattr(algorithm, "name", "") not in RSA_MECHANISMS:
            raise UnsupportedAlgorithm("certificates are signed with PKCS #1 v1.5 and SHA-256 or better")
        return self._sign(bytes(data), RSA_MECHANISMS[algorithm.name])

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def decrypt(self, ciphertext: Any, padding: Any) -> NoReturn:
        raise UnsupportedAlgorithm("a CA's key signs and does nothing else")

    def private_numbers(self) -> NoReturn:
        raise UnsupportedAlgorithm("the key is in a token and does not leave it")

    def private_bytes(self, *how: Any, **named: Any) -> NoReturn:
        self.private_numbers()

    def __copy__(self) -> TokenRsaKey:
        return self

    def __deepcopy__(self, memo: Any) -> TokenRsaKey:
        return self


def opened(uri: TokenUri, pin: str, module: TokenModule) -> CaKey:
    """The key that `uri` names. Raises TokenRefused where there is none, or one that could leave the token."""
    inside = session(uri, pin, module)
    with failing(uri):
        private = _only(uri, inside, ObjectClass.PRIVATE_KEY, uri.label, uri.id)
        if private is None:
            raise TokenRefused(f"{uri.text}: no such private key in the token")
        _require_kept(uri, private)
        return _key(uri, private, _public_of(uri, inside, private))


def found_or_made(uri: TokenUri, pin: str, module: TokenModule) -> CaKey:
    """The key that `uri` names, or a new one (P-256) of that label and id, which never leaves the token.

    Raises TokenRefused.
    """
    inside = session(uri, pin, module, writing=True)
    with failing(uri):
        if _only(uri, inside, ObjectClass.PRIVATE_KEY, uri.label, uri.id) is None:
            _make(uri, inside)
    inside.close()
    return opened(uri, pin, module)


def _make(uri: TokenUri, inside: pkcs11.Session) -> None:
    if not uri.label:
        raise TokenRefused(f"{uri.text}: no such private key; to make one, say what to call it: object=LABEL")
    curve = inside.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
    private = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    curve.generate_keypair(
        id=uri.id or uri.label.encode(),
        label=uri.label,
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template=private,
    )


def _only(uri: TokenUri, inside: pkcs11.Session, kind: ObjectClass, label: str, identifier: bytes) -> Any:
    """The object of this kind, or None."""
    wanted: dict[Attribute, Any] = {Attribute.CLASS: kind}
    wanted |= {Attribute.LABEL: label} if label else {}
    wanted |= {Attribute.ID: identifier} if identifier else {}
    found = list(inside.get_objects(wanted))
    if len(found) > 1:
        raise TokenRefused(f"{uri.text}: {len(found)} objects are called so; id=%HH… tells them apart")
    return found[0] if found else None


def _require_kept(uri: TokenUri, private: Any) -> None:
    if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
        raise TokenRefused(f"{uri.text}: this key could be taken out of the token (CKA_EXTRACTABLE, CKA_SENSITIVE)")
    if not private[Attribute.SIGN]:
        raise TokenRefused(f"{uri.text}: this key may not sign (CKA_SIGN)")


def _public_of(uri: TokenUri, inside: pkcs11.Session, private: Any) -> Any:
    """The public half's object, which has the same id."""
    identifier: bytes = private[Attribute.ID]
    public = _only(uri, inside, ObjectClass.PUBLIC_KEY, "" if identifier else uri.label, identifier)
    if public is None:
        raise TokenRefused(f"{uri.text}: its public key is not in the token; put it there, with the same id")
    return public


def _key(uri: TokenUri, private: Any, public: Any) -> CaKey:
    kind = private.key_type
    if kind is KeyType.EC:
        return TokenEcKey(uri, private, _ec_public(uri, public))
    if kind is KeyType.RSA:
        numbers = rsa.RSAPublicNumbers(
            e=int.from_bytes(public[Attribute.PUBLIC_EXPONENT]), n=int.from_bytes(public[Attribute.MODULUS])
        )
        return TokenRsaKey(uri, private, numbers.public_key())
    raise TokenRefused(f"{uri.text}: neither an elliptic curve key nor one for RSA")


def _ec_public(uri: TokenUri, public: Any) -> ec.EllipticCurvePublicKey:
    """The point is an OCTET STRING (DER) by the standard; some tokens leave that out."""
    curve = CURVES.get(public[Attribute.EC_PARAMS])
    if curve is None:
        raise TokenRefused(f"{uri.text}: curves but P-256, P-384 and P-521 are not known here")
    size_bytes = 1 + 2 * ((curve.key_size + 7) // 8)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, public[Attribute.EC_POINT][-size_bytes:])
    except ValueError as error:
        raise TokenRefused(f"{uri.text}: the public key in the token cannot be read ({error})") from None


def _is_usual(given: Any) -> bool:
    return isinstance(given, padding.PKCS1v15)
