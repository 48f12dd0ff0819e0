"""Who programs are to origins that ask for a client's certificate: contexts towards origins that have one to show.

An origin that asks gets the certificate that the deciding rule names; one that does not ask never sees it. Sessions are
resumed under the same certificate only (mitmsec.engine.resumption.Place).
"""

from __future__ import annotations

from collections.abc import Sequence

from OpenSSL import crypto

from mitmsec.core.identity import Identity
from mitmsec.engine import openssl
from mitmsec.engine.contexts import OriginContext, Own


class Identities:
    """All whose keys this worker has, by name."""

    def __init__(self, known: Sequence[Identity], keys_pem: bytes, roots_pem: bytes) -> None:
        """`keys_pem` begins with their keys, in the order of `known`; empty: none is had.

        Raises ValueError, SSL.Error, crypto.Error.
        """
        self._contexts: dict[str, OriginContext] = {}
        self.size_bytes = 0
        """How much of `keys_pem` is theirs."""
        for one in known if keys_pem else ():
            begin, self.size_bytes = self.size_bytes, self.size_bytes + one.key_bytes
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, keys_pem[begin : self.size_bytes], b"")
            chain = [openssl.certificate(der) for der in one.chain]
            self._contexts[one.name] = OriginContext(roots_pem, Own(chain, key.to_cryptography_key()))

    def find(self, name: str) -> OriginContext | None:
        """Towards origins, as who is called so."""
        return self._contexts.get(name)
