"""The categories of the mirror that are about certificates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from badssl import Category
from badssl_certificates import (
    CLIENT,
    TLS_FEATURE_STAPLE,
    UNHEARD_OF,
    Certified,
    Shape,
    ec_key,
    root,
    rsa_key,
    self_signed,
)
from badssl_revocation import ocsp_answer, stapling_server
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec.core.messages import Flaw

DOMAIN = "badssl.test"
MANY, TOO_MANY = 1_000, 10_000


class Pki:
    """What most categories share: a trusted root, a second one with an RSA key, and an intermediate below each."""

    def __init__(self) -> None:
        self.root = root()
        self.ca = self.root.intermediate()
        self.rsa_root = root("the RSA root of the tests", key=rsa_key())
        self.rsa_ca = self.rsa_root.intermediate("an RSA intermediate", key=rsa_key(2048, 1))
        self.store = (self.root, self.rsa_root)


@cache
def pki() -> Pki:
    return Pki()


def _category(
    label: str, why: str, lines: str, *chain: Certified, flaw: Flaw | None = None, error: str = "",
    breaks: bool = False, is_either: bool = False, is_public: bool = False, name: str = "",
    store: tuple[Certified, ...] | None = None,
) -> Category:  # fmt: skip
    return Category(
        id=label,
        why=why,
        name=name or _host(label),
        chain=chain,
        flaw=flaw,
        error=error,
        breaks=breaks,
        is_either=is_either,
        checklist=tuple(lines.split()),
        store=pki().store if store is None else store,
        is_public=is_public,
    )


@cache
def certificate_categories() -> tuple[Category, ...]:
    return (
        *_good(),
        *_dates_and_names(),
        *_untrusted(),
        *_interceptors(),
        *_weak(),
        *_chains(),
        *_usages(),
        *_revoked(),
    )


def _host(label: str) -> str:
    return f"{label}.{DOMAIN}"


def _good() -> list[Category]:
    one = pki()
    names = [f"{number}.{DOMAIN}" for number in range(MANY)]
    address = one.ca.leaf("127.0.0.1")
    return [
        _category("good", "nothing is wrong", "", one.ca.leaf(_host("good")), one.ca),
        _category(
            "rsa2048", "RSA, 2,048 bits", "", one.rsa_ca.leaf(_host("rsa2048"), key=rsa_key(2048, 2)), one.rsa_ca,
        ),
        _category("rsa8192", "RSA, 8,192 bits", "U12", one.ca.leaf(_host("rsa8192"), key=rsa_key(8192)), one.ca),
        _category(
            "private", "a private CA's, that says neither what it is for nor what its issuer may", "",
            *_under(one.root, _host("private"), of_leaf={"purposes": None, "signs": None}, signs=None),
        ),
        _category("ecc384", "P-384", "", one.ca.leaf(_host("ecc384"), key=ec_key(ec.SECP384R1())), one.ca),
        _category("wildcard", "a wildcard for one label", "", one.ca.leaf(f"*.{DOMAIN}"), one.ca),
        _category("ip-san", "an address among the names", "", address, one.ca, name="127.0.0.1"),
        _category(
            "no-common-name", "no common name, names in the SAN", "U12",
            one.ca.issue(Shape(names=[_host("no-common-name")])), one.ca,
        ),
        _category(
            "1000-sans", "1,000 names", "U12", one.ca.issue(Shape(names=[*names, _host("1000-sans")])), one.ca,
        ),
        _category(
            "root-sent", "the root is sent as well", "", one.ca.leaf(_host("root-sent")), one.ca, one.root,
        ),
        _category(
            "constrained", "a name that its CA's constraints permit", "",
            *_under(one.root, _host("constrained"), constraints=_permitted(DOMAIN)),
        ),
        _category(
            "reversed-chain", "the root comes before the intermediate", "U12",
            one.ca.leaf(_host("reversed-chain")), one.root, one.ca,
        ),
    ]  # fmt: skip


def _dates_and_names() -> list[Category]:
    one = pki()
    wrong = Flaw.WRONG_NAME
    return [
        _category(
            "expired", "ended yesterday", "U1", one.ca.leaf(_host("expired"), not_after_days=-1), one.ca,
            flaw=Flaw.EXPIRED, error="expired",
        ),
        _category(
            "not-yet-valid", "begins tomorrow", "U1", one.ca.leaf(_host("not-yet-valid"), not_before_days=1), one.ca,
            flaw=Flaw.NOT_YET_VALID, error="not valid yet",
        ),
        _category(
            "wrong.host", "another host's", "U2 U15", one.ca.leaf(f"www.{DOMAIN}"), one.ca, flaw=wrong,
            error="another host",
        ),
        _category(
            "deep.wildcard", "a wildcard, two labels above", "U2", one.ca.leaf(f"*.{DOMAIN}"), one.ca, flaw=wrong,
            error="another host",
        ),
        _category(
            "partial-wildcard", "a wildcard for part of a label", "U2", one.ca.leaf(f"partial-*.{DOMAIN}"), one.ca,
            flaw=wrong, error="another host",
        ),
        _category(
            "bare-wildcard", "a wildcard for a whole top level", "U2", one.ca.leaf("*.test"), one.ca, flaw=wrong,
            error="another host",
        ),
        _category(
            "cn-only", "the name in the common name only", "U2", one.ca.issue(Shape(common_name=_host("cn-only"))),
            one.ca, flaw=wrong, error="another host",
        ),
        _category(
            "wrong-ip", "another address among the names", "U2 U15", one.ca.leaf("192.0.2.1"), one.ca, flaw=wrong,
            name="127.0.0.1", error="another IP address",
        ),
        _category(
            "ip-as-dns-name", "the address as a host name", "U2",
            one.ca.issue(Shape(common_name="127.0.0.1", more=[_dns_names("127.0.0.1")])), one.ca, flaw=wrong,
            name="127.0.0.1", error="another IP address",
        ),
        _category(
            "host-for-ip", "no SNI, and a certificate without the address", "U15", one.ca.leaf(_host("host-for-ip")),
            one.ca, flaw=wrong, name="127.0.0.1", error="another IP address",
        ),
        _category(
            "no-subject", "neither subject nor names", "U2 U12", one.ca.issue(Shape()), one.ca, flaw=wrong,
            error="another host",
        ),
    ]  # fmt: skip


def _dns_names(*names: str) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False


def _permitted(*domains: str) -> x509.NameConstraints:
    return x509.NameConstraints([x509.DNSName(domain) for domain in domains], None)


def _under(
    above: Certified, host: str, of_leaf: dict[str, object] | None = None, **more: object
) -> tuple[Certified, Certified]:
    """A leaf for `host`, and its issuer as `more` makes it."""
    ca = above.intermediate(**more)
    return ca.leaf(host, **of_leaf or {}), ca


def _untrusted() -> list[Category]:
    stranger = root("a root that nobody knows")
    ca = stranger.intermediate()
    unknown = Flaw.UNTRUSTED
    host = _host("self-signed")
    return [
        _category(
            "self-signed", "signed by itself", "U3", self_signed(Shape(common_name=host, names=[host])), flaw=unknown,
            error="self-signed",
        ),
        _category(
            "untrusted-root", "a root that nobody knows", "U3", ca.leaf(_host("untrusted-root")), ca, stranger,
            flaw=unknown, error="not trusted",
        ),
        _category(
            "incomplete-chain", "the intermediate is missing", "U12", pki().ca.leaf(_host("incomplete-chain")),
            flaw=unknown, error="issuer is unknown",
        ),
        _category(
            "same-name-root", "a root with the name of a trusted one and another key", "U3",
            (fake := root(key=rsa_key())).leaf(_host("same-name-root")), fake, flaw=unknown,
        ),
    ]  # fmt: skip


def _interceptors() -> list[Category]:
    """Made by ourselves, with the names. They are in the store here: a machine that has them is the case to fear."""
    made = []
    for label, common_name in (
        ("superfish", "Superfish, Inc."), ("edellroot", "eDellRoot"), ("dsdtestprovider", "DSDTestProvider"),
    ):  # fmt: skip
        installed = root(common_name)
        why = f"a root like {common_name.rstrip('.')}'s, which the store has"
        made.append(
            _category(
                label, why, "U4", installed.leaf(_host(label)), flaw=Flaw.UNTRUSTED, error="interception",
                store=(*pki().store, installed),
            )
        )  # fmt: skip
    for label in ("preact-cli", "webpack-dev-server"):
        shape = Shape(common_name=label, names=["localhost", _host(label)])
        made.append(
            _category(label, "a development server's own, the same everywhere", "U4", self_signed(shape),
                      flaw=Flaw.UNTRUSTED, error="self-signed")
        )  # fmt: skip
    return made


def _weak() -> list[Category]:
    one = pki()
    made = [
        _category(
            f"{digest}-leaf", f"signed with {digest.upper()}", "U8",
            one.rsa_ca.leaf(_host(f"{digest}-leaf"), digest=digest), one.rsa_ca,
            flaw=Flaw.UNTRUSTED, error="digest is too weak",
        )
        for digest in ("md5", "sha1")
    ]  # fmt: skip
    made += [
        _category(
            f"{digest}-intermediate", f"its issuer signed with {digest.upper()}", "U8",
            *_under(one.rsa_root, _host(f"{digest}-intermediate"), digest=digest),
            flaw=Flaw.UNTRUSTED, error="digest is too weak",
        )
        for digest in ("md5", "sha1")
    ]  # fmt: skip
    small_root = root("a small root", key=rsa_key(1024))
    made += [
        _category(
            "rsa1024", "RSA, 1,024 bits", "U9", one.ca.leaf(_host("rsa1024"), key=rsa_key(1024, 1)), one.ca,
            flaw=Flaw.UNTRUSTED, error="key is too weak",
        ),
        _category(
            "rsa1024-intermediate", "its issuer's key has 1,024 bits", "U9",
            *_under(one.rsa_root, _host("rsa1024-intermediate"), key=rsa_key(1024)),
            flaw=Flaw.UNTRUSTED, error="key is too weak",
        ),
        _category(
            "rsa1024-root", "a trusted root of 1,024 bits", "U9", small_root.leaf(_host("rsa1024-root")),
            flaw=Flaw.UNTRUSTED, error="key is too weak", store=(small_root,),
        ),
        _category(
            "weak-curve", "P-192", "U9", one.ca.leaf(_host("weak-curve"), key=ec_key(ec.SECP192R1())), one.ca,
            flaw=Flaw.UNTRUSTED, breaks=True,
        ),
        _category(
            "weak-curve-intermediate", "its issuer's curve is P-192", "U9",
            *_under(one.root, _host("weak-curve-intermediate"), key=ec_key(ec.SECP192R1())),
            flaw=Flaw.UNTRUSTED, error="key is too weak",
        ),
        _category(
            "odd-curve-intermediate", "its issuer's curve is secp256k1", "U9",
            *_under(one.root, _host("odd-curve-intermediate"), key=ec_key(ec.SECP256K1())),
            flaw=Flaw.UNTRUSTED, error="key is too weak",
        ),
    ]  # fmt: skip
    return made


def _chains() -> list[Category]:
    one = pki()
    unknown = Flaw.UNTRUSTED
    many = [f"{number}.{DOMAIN}" for number in range(TOO_MANY)]
    short = one.root.intermediate("an intermediate that may have none below", path_length=0)
    below = short.intermediate("an intermediate too many")
    leaf = one.ca.leaf("issuer.test")
    excluded = x509.NameConstraints(None, [x509.DNSName(DOMAIN)])
    return [
        _category(
            "10000-sans", "10,000 names", "U12", one.ca.issue(Shape(names=[*many, _host("10000-sans")])), one.ca,
            breaks=True, is_either=True,
        ),
        _category(
            "path-length", "more issuers than one of them permits", "U10", below.leaf(_host("path-length")), below,
            short, flaw=unknown, error="path length",
        ),
        _category(
            "ca-false-issuer", "its issuer is no CA", "U10", leaf.leaf(_host("ca-false-issuer")), leaf, one.ca,
            flaw=unknown, error="no CA",
        ),
        _category(
            "no-basic-constraints", "its issuer does not say that it is a CA", "U10",
            *_under(one.root, _host("no-basic-constraints"), is_ca=None), flaw=unknown, error="no CA",
        ),
        _category(
            "name-not-permitted", "a name that its CA's constraints do not permit", "U10",
            *_under(one.root, _host("name-not-permitted"), constraints=_permitted("corp.test")), flaw=unknown,
            error="name constraints",
        ),
        _category(
            "name-excluded", "a name that its CA's constraints exclude", "U10",
            *_under(one.root, _host("name-excluded"), constraints=excluded), flaw=unknown, error="name constraints",
        ),
        _category(
            "expired-intermediate", "its issuer ended yesterday", "U1",
            *_under(one.root, _host("expired-intermediate"), not_after_days=-1), flaw=Flaw.EXPIRED, error="expired",
        ),
    ]  # fmt: skip


def _usages() -> list[Category]:
    one = pki()
    unknown = Flaw.UNTRUSTED
    odd = (x509.UnrecognizedExtension(UNHEARD_OF, b"\x05\x00"), True)
    return [
        _category(
            "wrong-eku", "meant for clients", "U10", one.ca.leaf(_host("wrong-eku"), purposes=CLIENT), one.ca,
            flaw=unknown, error="not meant for servers",
        ),
        _category(
            "no-eku", "does not say what it is for", "U10", one.ca.leaf(_host("no-eku"), purposes=None), one.ca,
            flaw=unknown, error="extendedKeyUsage", is_public=True,
        ),
        _category(
            "wrong-ku", "its key may not shake hands", "U10", one.ca.leaf(_host("wrong-ku"), shakes_hands=False),
            one.ca, flaw=unknown, breaks=True,
        ),
        _category(
            "issuer-without-ku", "its issuer does not say what its key is for", "U10",
            *_under(one.root, _host("issuer-without-ku"), signs=None), flaw=unknown, error="keyUsage",
            is_public=True,
        ),
        _category(
            "issuer-wrong-ku", "its issuer may not sign certificates", "U10",
            *_under(one.root, _host("issuer-wrong-ku"), signs=False), flaw=unknown,
        ),
        _category(
            "issuer-wrong-eku", "its issuer is meant for clients", "U10",
            *_under(one.root, _host("issuer-wrong-eku"), purposes=CLIENT), flaw=unknown,
            error="not meant for servers",
        ),
        _category(
            "critical-extension", "an unknown critical extension", "U10",
            one.ca.leaf(_host("critical-extension"), more=[odd]), one.ca, flaw=unknown, error="critical extension",
        ),
        _category(
            "issuer-critical-extension", "its issuer has an unknown critical extension", "U10",
            *_under(one.root, _host("issuer-critical-extension"), more=[odd]), flaw=unknown,
            error="critical extension",
        ),
    ]  # fmt: skip


def _revoked() -> list[Category]:
    """What can be seen without asking anybody: an answer that the origin staples, or does not."""
    one = pki()
    must = [(TLS_FEATURE_STAPLE, False)]
    revoked, good = one.ca.leaf(_host("revoked")), one.ca.leaf(_host("stapled"), more=must)
    return [
        replace(
            _category(
                "revoked", "revoked, as its stapled OCSP answer says", "U7", revoked, one.ca, flaw=Flaw.UNTRUSTED,
                error="revoked",
            ),
            server=lambda category: stapling_server(category, ocsp_answer(revoked, one.ca, revoked=True)),
        ),
        _category(
            "must-staple", "good only with a stapled OCSP answer, and none comes", "U7",
            one.ca.leaf(_host("must-staple"), more=must), one.ca, flaw=Flaw.UNTRUSTED, error="stapled",
        ),
        replace(
            _category("stapled", "the same, and a good one comes", "U7", good, one.ca),
            server=lambda category: stapling_server(category, ocsp_answer(good, one.ca)),
        ),
    ]  # fmt: skip
