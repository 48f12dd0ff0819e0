"""OpenSSL contexts, made once and used for many connections.

Towards origins there is one context, with the roots loaded once. Towards clients there is one context for each leaf:
it holds certificate, chain and key, so that a new connection costs no more than SSL_new; and since its ticket keys and
session id context are its own, what a client resumes was begun under the same name and the same kind of certificate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL, crypto

from mitmsec.audit.event import SecretsSeen
from mitmsec.core.messages import Flaw
from mitmsec.engine import openssl
from mitmsec.engine.openssl import LeafKey, TlsSession
from mitmsec.engine.seams import Certifier, LeafQuestion, Refused

LEAVES_LIMIT = 512
LEAF_USE_S = 3600.0  # how long one leaf serves new connections before the signer is asked again
KEY_USE_S = 86400.0
_CLIENT_OPTIONS = SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"

KeyLog = Callable[[TlsSession, bytes], None]


class OriginContext:
    """Verifies origins against `roots_pem`. Errors are noted in the session and never end the handshake."""

    def __init__(self, roots_pem: bytes) -> None:
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_min_proto_version(SSL.TLS1_2_VERSION)
        self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        self._context.set_verify(SSL.VERIFY_PEER, _note)
        store = self._context.get_cert_store()
        roots = openssl.certificates_of_pem(roots_pem)
        for root in roots:
            if store is not None:
                store.add_cert(root)
        self.roots = len(roots)

    def session(self, name: str, *, sni: bool, alpn: Sequence[bytes], tls12: bool) -> TlsSession:
        """A client's side towards `name`, as `openssl.client_side` makes it."""
        return openssl.client_side(self._context, name, sni=sni, alpn=alpn, tls12=tls12, verified=True)


class Leaves:
    """Contexts for the clients' side. One key for all leaves of a day."""

    def __init__(
        self, certifier: Certifier, *, on_key_log: KeyLog | None = None, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._certifier = certifier
        self._on_key_log = on_key_log
        self._clock_s = clock_s
        self._key = LeafKey(clock_s())
        self._contexts: OrderedDict[tuple[object, ...], tuple[SSL.Context, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    async def context(self, flow: str, name: str, *, not_after_s: int | None, flaw: Flaw | None) -> SSL.Context:
        """The context with a leaf for exactly `name`. Raises Refused."""
        now_s = self._clock_s()
        if now_s - self._key.made_s > KEY_USE_S:
            self._key = LeafKey(now_s)
            self._contexts.clear()
        wanted = (name, flaw, not_after_s)
        known = self._contexts.get(wanted)
        if known is not None and now_s < known[1]:
            self._contexts.move_to_end(wanted)
            return known[0]
        key = self._key
        question = LeafQuestion(flow=flow, name=name, public_key=key.public_key, not_after_s=not_after_s, flaw=flaw)
        context, ends_s = self._made(await self._certifier.chain(question), key, name)
        if key is self._key:
            until_s = now_s + LEAF_USE_S if flaw is not None else min(now_s + LEAF_USE_S, float(ends_s))
            self._contexts[wanted] = context, until_s
            while len(self._contexts) > LEAVES_LIMIT:
                self._contexts.popitem(last=False)
        return context

    def _made(self, chain: Sequence[bytes], key: LeafKey, name: str) -> tuple[SSL.Context, int]:
        try:
            certificates = [openssl.certificate(der) for der in chain]
            context = server_context(certificates, key.private, name, self._on_key_log)
        except (ValueError, SSL.Error, crypto.Error) as error:
            raise Refused(f"the certificates for {name} cannot be used: {error}") from error
        return context, openssl.not_after_s(certificates[0])


def server_context(
    chain: Sequence[crypto.X509], private: Any, name: str, on_key_log: KeyLog | None = None
) -> SSL.Context:
    """For a server's side with `chain`, its own certificate first. Sessions are resumed under the same `name` only.

    Raises ValueError, SSL.Error, crypto.Error.
    """
    leaf, *rest = chain
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(leaf.to_cryptography())
    for issuer in rest:
        context.add_extra_chain_cert(issuer.to_cryptography())
    context.use_privatekey(private)
    context.check_privatekey()
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


def client_session(context: SSL.Context, alpn: bytes) -> TlsSession:
    """A server's side towards the client that agrees to `alpn`, b"" for none, and to nothing else."""
    connection = SSL.Connection(context, None)
    session = TlsSession(connection)
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
