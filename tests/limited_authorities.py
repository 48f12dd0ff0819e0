"""CAs that are limited to some names, and would sign for any: what a thief of the issuing key can do."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import SubjectKeyIdentifier, load_der_x509_certificate

from mitmsec.core.crl_place import crl_path
from mitmsec.core.messages import Flaw
from mitmsec_certs.authority import Authority, empty_list, make_issuing, make_root, serial_of, validity_of
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.profile import Name, Place, issuing_profile, lasting_root_profile, leaf_profile

NOW_S = int(time.time())
LENGTHS = (32, 48)  # of P-256 and P-384
PLACE = Place(host="host", tag="00", date="2027-01-15")


class Authorities:
    """A root, and an issuing CA that would sign whatever it is asked, for verifiers to be asked about."""

    def __init__(self, limit: Constraints) -> None:
        root_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
        lasting = lasting_root_profile(PLACE, NOW_S, limit)
        self.root = read_by_wine(lambda: make_root(lasting, root_key, serial()), lambda root: root.signature)
        profile = issuing_profile(PLACE, NOW_S, validity_of(self.root), limit)
        self.issuing = read_by_wine(
            lambda: make_issuing(profile, self.root, root_key, key.public_key(), serial(), has_list=True),
            lambda issuing: issuing.signature,
        )
        self.authority = Authority(key, self.issuing, [self.root])
        self._root_list = empty_list(root_key, self.root, validity_of(self.root))

    def chain(
        self, name: str, flaw: Flaw | None = None, key: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, ...]:
        profile = leaf_profile(Name.of(name), NOW_S, self.authority.validity, flaw=flaw)
        self.authority.require_allowed = lambda name: None  # type: ignore[method-assign]
        public_key = (key or ec.generate_private_key(ec.SECP256R1())).public_key()
        return read_by_wine(lambda: self.authority.issue(profile, public_key, serial()), leafs_signature)

    def leaf(self, name: str, file: Path) -> Path:
        """`file`, with chain and key for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(private + "".join(map(ssl.DER_cert_to_PEM_cert, self.chain(name, key=key))).encode())
        return file

    def crls(self) -> tuple[tuple[str, bytes], ...]:
        """Path and list (DER) of each CA."""
        own = self.authority.crl(NOW_S)
        assert own is not None
        identifier = self.root.extensions.get_extension_for_class(SubjectKeyIdentifier).value.digest
        return own, (crl_path(identifier), self._root_list)


def read_by_wine[T](make: Callable[[], T], signature_of: Callable[[T], bytes]) -> T:
    """As `make` makes it, its signature with both integers as long as the curve's.

    Wine (8.0) takes a signature for invalid in which one is shorter, as one in 128 is.
    """
    while True:
        made = make()
        r, s = decode_dss_signature(signature_of(made))
        if (r.bit_length() + 7) // 8 == (s.bit_length() + 7) // 8 in LENGTHS:
            return made


def leafs_signature(chain: Sequence[bytes]) -> bytes:
    return load_der_x509_certificate(chain[0]).signature


def serial() -> int:
    return serial_of(secrets.token_bytes(16))
