"""What a handshake came to, for the record."""

from __future__ import annotations

from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import TlsClientFacts, TlsServerFacts
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.seams import Defect
from mitmsec.engine.strength import excess


def client_facts(session: TlsSession, hello: ClientHello | None, origin: TlsSession | None = None) -> TlsClientFacts:
    """Of the client's leg, beside the origin's, where there is one."""
    strength = session.strength
    return TlsClientFacts(
        version=session.version,
        cipher=session.cipher,
        group=strength.group,
        exceeds_server=excess(strength, origin.strength) if origin is not None else None,
        sni=hello.sni if hello else None,
        alpn=session.alpn.decode("latin-1") or None,
        ja4=hello.ja4 if hello else None,
    )


def server_facts(
    session: TlsSession, defect: Defect | None, note: str | None, identity: str | None = None
) -> TlsServerFacts:
    """Of the origin's leg, once its proof was judged. `identity`: whose certificate it is shown, for it has asked."""
    certificate = session.peer_certificate()
    return TlsServerFacts(
        version=session.version,
        cipher=session.cipher,
        group=session.strength.group,
        alpn=session.alpn.decode("latin-1") or None,
        certificate_sha256=certificate[0] if certificate else None,
        client_certificate=identity,
        verified=defect is None,
        resumed=True if session.resumed else None,
        error=defect.text if defect is not None else None,
        note=note,
    )
