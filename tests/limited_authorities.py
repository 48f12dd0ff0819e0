"""CAs that are limited to some names, and would sign for any: what a thief of the issuing key can do."""

from __future__ import annotations

import secrets
import ssl
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import SubjectKeyIdentifier

from mitmsec.core.crl_place import crl_path
from mitmsec.core.messages import Flaw
from mitmsec_certs.authority import Authority, empty_list, make_issuing, make_root, serial_of, validity_of
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.profile import Name, Place, issuing_profile, lasting_root_profile, leaf_profile

NOW_S = int(time.time())
PLACE = Place(host="host", tag="00", date="2027-01-15")


class Authorities:
    """A root, and an issuing CA that would sign whatever it is asked, for verifiers to be asked about."""

    def __init__(self, limit: Constraints) -> None:
        root_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = make_root(lasting_root_profile(PLACE, NOW_S, limit), root_key, serial())
        profile = issuing_profile(PLACE, NOW_S, validity_of(self.root), limit)
        self.issuing = make_issuing(profile, self.root, root_key, key.public_key(), serial(), has_list=True)
        self.authority = Authority(key, self.issuing, [self.root])
        self._root_list = empty_list(root_key, self.root, validity_of(self.root))

    def chain(
        self, name: str, flaw: Flaw | None = None, key: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, ...]:
        profile = leaf_profile(Name.of(name), NOW_S, self.authority.validity, flaw=flaw)
        self.authority.require_allowed = lambda name: None  # type: ignore[method-assign]
        return self.authority.issue(profile, (key or ec.generate_private_key(ec.SECP256R1())).public_key(), serial())

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


def serial() -> int:
    return serial_of(secrets.token_bytes(16))
