"""What a verified chain must be besides verified. OpenSSL builds and verifies it; this looks at what it has built.

    leaf ──► issuer ──► … ──► anchor          the chain as it was verified, the origin's own certificate first
     │          │               └─ strong key; whoever signed it is not asked
     │          └─ is a CA, and may sign; strong key and signature
     └─ is for servers; strong key and signature

Nobody in it is known interception software, and nobody has a key of our own CA, whatever store trusts that: else who
gets a leaf from us, or our key, could pose as any origin to us, and we would tell the program that it is genuine.
A certificate that is itself trusted (a chain of one) is asked for nothing but its key.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.core.model import Value
from mitmsec_certs.defects import Defect, untrusted
from mitmsec_certs.known_interceptors import interceptor

RSA_BITS = 2048
RSA_EXPONENT = 3
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1", "brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1"})
STRONG_KEYS = frozenset({"Ed25519", "Ed448", "ML-DSA"})
DIGESTS = frozenset({"sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512", "none"})
SERVER, ANY_PURPOSE = "1.3.6.1.5.5.7.3.1", "2.5.29.37.0"


class Link(Value, frozen=True):
    """One certificate of a chain, as far as the rules ask. None: it says nothing about that."""

    common_name: str
    sha256: str  # of the certificate, hex
    key_sha256: str  # of its SubjectPublicKeyInfo, hex
    key: str  # RSA, EC, or the name of another kind
    bits: int = 0
    exponent: int = 0
    curve: str = ""
    digest: str = ""  # of its signature; "none" where the scheme has its own
    is_ca: bool | None = None  # basicConstraints
    may_sign: bool | None = None  # keyUsage, keyCertSign
    may_shake_hands: bool | None = None  # keyUsage, what a TLS server needs of it
    purposes: tuple[str, ...] | None = None  # extendedKeyUsage, object identifiers
    must_staple: bool = False  # TLS feature (RFC 7633)
    logs: int = 0  # that say to have logged it, at a time that can be


def forbidden(chain: tuple[Link, ...], own_keys: frozenset[str]) -> Iterator[Defect]:
    """Certificates that prove nothing, whoever trusts them. `own_keys`: of our CAs, as `Link.key_sha256`."""
    for link in chain:
        if link.key_sha256 in own_keys:
            yield untrusted("the certificate comes from mitmsec's own CA")
        if (whose := interceptor(link.sha256, link.common_name)) is not None:
            yield untrusted(f"the chain contains a certificate of known interception software ({whose})")


def weaknesses(chain: tuple[Link, ...]) -> Iterator[Defect]:
    """What is too weak, or meant for something else, in a chain that is otherwise right."""
    for depth, link in enumerate(chain):
        yield from _weak_key(link, "the certificate's key" if depth == 0 else "a CA's key")
    for link in chain[:-1]:  # an anchor is trusted for itself, whoever has signed it
        if link.digest not in DIGESTS:
            yield untrusted(f"a signature's digest is too weak ({link.digest or 'unknown'})")
    for link in chain[1:-1]:
        if not link.is_ca:
            yield untrusted("an issuer is no CA")
    for link in chain[1:]:
        if link.may_sign is False:
            yield untrusted("an issuer may not sign certificates")
    if len(chain) > 1:
        yield from _no_server(chain[0])


def omissions(chain: tuple[Link, ...]) -> Iterator[Defect]:
    """What public CAs must say (CA/Browser Forum, Baseline Requirements, 7.1.2), and private ones often do not."""
    if any(link.may_sign is None for link in chain[1:-1]):  # old roots say nothing either
        yield untrusted("an issuer does not say that it may sign certificates (keyUsage)")
    if len(chain) > 1 and chain[0].purposes is None:
        yield untrusted("the certificate does not say what it is for (extendedKeyUsage)")


def _weak_key(link: Link, whose: str) -> Iterator[Defect]:
    match link.key:
        case "RSA":
            if link.bits < RSA_BITS or link.exponent < RSA_EXPONENT:
                yield untrusted(f"{whose} is too weak (RSA, {link.bits} bits, exponent {link.exponent})")
        case "EC":
            if link.curve not in CURVES:
                yield untrusted(f"{whose} is too weak (curve {link.curve or 'unknown'})")
        case kind:
            if kind not in STRONG_KEYS:
                yield untrusted(f"{whose} is of a kind that is not accepted ({kind})")


def _no_server(leaf: Link) -> Iterator[Defect]:
    if leaf.purposes is not None and not {SERVER, ANY_PURPOSE} & set(leaf.purposes):
        yield untrusted("the certificate is not meant for servers")
    if leaf.may_shake_hands is False:
        yield untrusted("the certificate's key may not be used for a handshake (keyUsage)")
