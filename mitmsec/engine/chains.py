"""What certificates are worth that came by QUIC: the same chain building and the same names as in a TLS handshake.

aioquic makes handshakes itself, and knows of OpenSSL's checks only a part. Its own are switched off; what the origin
showed is put before OpenSSL here, with the purpose, the roots and the name as `contexts.OriginContext` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL, crypto
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate

from mitmsec.core.origin_proof import Proof
from mitmsec.engine.openssl import HOST_FLAGS, packed_address

_lib: Any = SSL._lib  # type: ignore[attr-defined]
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]
CHAIN_LIMIT = 16  # certificates that an origin may show; OpenSSL itself reads no more than 100 KB of them
_SSL_SERVER = 2  # X509_PURPOSE_SSL_SERVER
TOO_LONG = 22  # X509_V_ERR_CERT_CHAIN_TOO_LONG


def proof_of(shown: Sequence[Any], name: str, roots: Sequence[crypto.X509]) -> Proof:
    """Of certificates as aioquic holds them, the origin's own first; its key has signed the handshake."""
    chain = [crypto.X509.from_cryptography(one) for one in shown[: CHAIN_LIMIT + 1]]
    ders = tuple(dump_certificate(FILETYPE_ASN1, one) for one in chain)
    if not chain or len(chain) > CHAIN_LIMIT:
        return Proof(errors=(TOO_LONG,) if chain else (), chain=ders[:1])
    context = crypto.X509StoreContext(_store(name, roots), chain[0], chain[1:])
    try:
        verified = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        return Proof(errors=(error.errors[0],), chain=ders)
    return Proof(chain=tuple(dump_certificate(FILETYPE_ASN1, one) for one in verified))


def _store(name: str, roots: Sequence[crypto.X509]) -> crypto.X509Store:
    """What is to be checked beside signatures and times. Raises ValueError for a name that OpenSSL does not take."""
    store = crypto.X509Store()
    for root in roots:
        store.add_cert(root)
    raw: Any = store
    _lib.X509_STORE_set_purpose(raw._store, _SSL_SERVER)
    param = _ffi.gc(_lib.X509_VERIFY_PARAM_new(), _lib.X509_VERIFY_PARAM_free)
    _lib.X509_VERIFY_PARAM_set_hostflags(param, HOST_FLAGS)
    packed = packed_address(name)
    if packed is None:
        accepted = _lib.X509_VERIFY_PARAM_set1_host(param, name.encode(), len(name.encode()))
    else:
        accepted = _lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed))
    if accepted != 1 or _lib.X509_STORE_set1_param(raw._store, param) != 1:
        raise ValueError(f"OpenSSL does not accept {name!r} as a peer's name")
    return store
