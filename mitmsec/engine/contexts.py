"""OpenSSL contexts, made once and used for many connections.

Towards origins there is one context, with the roots loaded once. Towards clients there is one context for each leaf:
it holds certificate, chain and key, so that a new connection costs no more than SSL_new; and since its ticket keys and
session id context are its own, what a client resumes was begun under the same name and the same kind of certificate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from OpenSSL import SSL, crypto

from mitmsec.audit.event import SecretsSeen
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw
from mitmsec.engine import openssl, strength
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.seams import Certifier, Leaf, LeafQuestion, Refused
from mitmsec.engine.strength import Floor, Strength

LEAVES_LIMIT = 512
LEAF_USE_S = 3600.0  # how long one leaf serves new connections before the signer is asked again
_CLIENT_OPTIONS = SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
_ORIGIN_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
_GROUPS = {share: strength.groups_from(strength.LOWEST, with_share=share) for share in (True, False)}
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"

KeyLog = Callable[[TlsSession, bytes], None]


class Own(NamedTuple):
    """A certificate to show to origins that ask for one, and those above it; its key."""

    chain: Sequence[crypto.X509]
    private: Any


class OriginContext:
    """Verifies origins against `roots_pem`. Errors are noted in the session and never end the handshake."""

    def __init__(self, roots_pem: bytes, own: Own | None = None) -> None:
        """Raises SSL.Error where `own` cannot be used."""
        roots = openssl.certificates_of_pem(roots_pem)
        self._contexts = {
            (bits, share): _origin_context(roots, bits, _GROUPS[share])
            for bits in strength.CIPHERS
            for share in _GROUPS
        }
        for context in self._contexts.values():
            if own is not None:
                _use(context, own)
        self.roots = len(roots)

    def session(
        self,
        name: str,
        *,
        sni: bool,
        alpn: Sequence[bytes],
        tls12: bool,
        floor: Floor = strength.LOWEST,
        share: bool = True,
    ) -> TlsSession:
        """A client's side towards `name`, as `openssl.client_side` makes it, that agrees to nothing below `floor`.

        Without `share`, no hybrid group's is sent: who wants one has to ask for it.
        """
        context, groups = self._contexts[floor.cipher_bits, share], strength.groups_from(floor, with_share=share)
        groups = "" if groups == _GROUPS[share] else groups  # the context has them already: to read them takes 0.1 ms
        return openssl.client_side(context, name, sni=sni, alpn=alpn, tls12=tls12, groups=groups, verified=True)


def _origin_context(roots: Sequence[crypto.X509], cipher_bits: int, groups: str) -> SSL.Context:
    """Suites of so many bits and more: those that the NDSS'17 study grades A, and no other."""
    bits = sorted((bits for bits in strength.CIPHERS if bits >= cipher_bits), reverse=True)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b":".join(strength.CIPHERS[each] for each in bits))
    context.set_tls13_ciphersuites(b":".join(strength.CIPHERS_13[each] for each in bits))
    openssl.restrict_groups(context, groups)
    context.set_options(_ORIGIN_OPTIONS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER, _note)
    openssl.note_requests(context)
    store = context.get_cert_store()
    for root in roots:
        if store is not None:
            store.add_cert(root)
    return context


class Leaves:
    """Contexts for the clients' side. The signer makes the leaves and their keys; this is who keeps them ready."""

    def __init__(
        self, certifier: Certifier, *, on_key_log: KeyLog | None = None, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._certifier = certifier
        self._on_key_log = on_key_log
        self._clock_s = clock_s
        self._contexts: OrderedDict[tuple[object, ...], tuple[SSL.Context, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    async def context(
        self,
        flow: str,
        name: str,
        *,
        not_after_s: int | None,
        flaw: Flaw | None,
        key: LeafKeyKind = LeafKeyKind.P256,
    ) -> SSL.Context:
        """The context with a leaf for exactly `name`. Raises Refused."""
        now_s = self._clock_s()
        wanted = (name, flaw, not_after_s, key)
        known = self._contexts.get(wanted)
        if known is not None and now_s < known[1]:
            self._contexts.move_to_end(wanted)
            return known[0]
        question = LeafQuestion(flow=flow, name=name, key=key, not_after_s=not_after_s, flaw=flaw)
        context, ends_s = self._made(await self._certifier.leaf(question), name)
        until_s = now_s + LEAF_USE_S if flaw is not None else min(now_s + LEAF_USE_S, float(ends_s))
        self._contexts[wanted] = context, until_s
        while len(self._contexts) > LEAVES_LIMIT:
            self._contexts.popitem(last=False)
        return context

    def _made(self, leaf: Leaf, name: str) -> tuple[SSL.Context, int]:
        try:
            certificates = [openssl.certificate(der) for der in leaf.chain]
            context = server_context(certificates, openssl.private_key(leaf.key), name, self._on_key_log)
        except (ValueError, SSL.Error, crypto.Error) as error:
            raise Refused(f"the certificates for {name} cannot be used: {error}") from error
        return context, openssl.not_after_s(certificates[0])


def server_context(
    chain: Sequence[crypto.X509], private: Any, name: str, on_key_log: KeyLog | None = None
) -> SSL.Context:
    """For a server's side with `chain`, its own certificate first. Sessions are resumed under the same `name` only.

    Raises ValueError, SSL.Error, crypto.Error.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    _use(context, Own(chain, private))
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_CLIENT_OPTIONS)
    context.set_cipher_list(_CIPHERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(openssl.session_context(name))
    context.set_alpn_select_callback(_select)
    if on_key_log is not None:

        def log(connection: SSL.Connection, line: bytes) -> None:
            session: Any = connection.get_app_data()
            if isinstance(session, TlsSession):
                on_key_log(session, line)

        context.set_keylog_callback(log)
    return context


def _use(context: SSL.Context, own: Own) -> None:
    leaf, *rest = own.chain
    context.use_certificate(leaf.to_cryptography())
    for issuer in rest:
        context.add_extra_chain_cert(issuer.to_cryptography())
    context.use_privatekey(own.private)
    context.check_privatekey()


def client_session(
    context: SSL.Context, alpn: bytes, *, origin: Strength | None = None, choice: bool = False
) -> TlsSession:
    """A server's side towards the client that agrees to `alpn`, b"" for none, and to nothing else.

    Nor to a later version than the `origin`, nor to a hybrid group, if that did not and the client leaves the `choice`.
    """
    connection = SSL.Connection(context, None)
    session = TlsSession(connection)
    if origin is not None and origin.version != "TLSv1.3":
        connection.set_options(SSL.OP_NO_TLSv1_3)
    if origin is not None and choice and not origin.is_hybrid:
        openssl.restrict_groups(connection, strength.CLASSICAL)
    session.wanted_alpn = alpn
    connection.set_accept_state()
    return session


def log_keys(record: Callable[[SecretsSeen], None]) -> KeyLog:
    """A key log for the clients' legs (NSS format), each line under the flow that it opens."""

    def log(session: TlsSession, line: bytes) -> None:
        if session.owner is not None:
            record(SecretsSeen(flow=session.owner, lines=line.rstrip(b"\n") + b"\n"))

    return log


def _note(connection: SSL.Connection, _certificate: object, error: int, _depth: int, fine: int) -> bool:
    if not fine:
        connection.get_app_data().verify_errors.append(error)
    return True


def _select(connection: SSL.Connection, offered: list[bytes]) -> Any:
    wanted = connection.get_app_data().wanted_alpn
    return wanted if wanted and wanted in offered else SSL.NO_OVERLAPPING_PROTOCOLS
