"""Does a dialogue that began in plaintext go on under TLS? One recogniser for each protocol reads, and changes nothing.

    client ── sent ────►  Recogniser  ◄──── received ── server
                             │
            ON │ UPGRADE: the client's next byte begins a hello │ Malformed: nothing of this may go on

Who has a plaintext dialogue and TLS in one connection must not let the first reach into the second: what a client, or
somebody on the way, has sent behind the request for TLS must not be taken for something that was said inside it, nor
what follows the server's consent (CVE-2011-0411, CVE-2021-23214, CVE-2021-23222). So the request has to be the last
that the client says before it is answered, and the consent the last that the server says: else Malformed.

Memory is bounded whatever comes, and the answer does not depend on how the bytes are cut into pieces, but for one: what
a server says behind its consent, in another piece, is not seen here. It is read as TLS, which it is not.
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.clienthello import Malformed
from mitmsec.core.sniff import Protocol
from mitmsec.core.tunnel import Connect, Socks
from mitmsec.core.upgrade_lines import Ftp, Imap, Pop3, Smtp
from mitmsec.core.upgrade_packets import Ldap, MySql, PostgreSql
from mitmsec.core.upgrade_step import Recogniser, Step
from mitmsec.core.upgrade_xmpp import Xmpp

__all__ = ["Malformed", "Recogniser", "Step", "recogniser"]

_RECOGNISERS: Mapping[Protocol, type[Recogniser]] = {
    Protocol.FTP: Ftp,
    Protocol.HTTP_PROXY: Connect,
    Protocol.IMAP: Imap,
    Protocol.LDAP: Ldap,
    Protocol.MYSQL: MySql,
    Protocol.POP3: Pop3,
    Protocol.POSTGRESQL: PostgreSql,
    Protocol.SMTP: Smtp,
    Protocol.SOCKS: Socks,
    Protocol.XMPP: Xmpp,
}


def recogniser(protocol: Protocol | None) -> Recogniser:
    """A new one. Raises ValueError for what is neither UPGRADABLE nor of TUNNELS."""
    kind = _RECOGNISERS.get(protocol) if protocol is not None else None
    if kind is None:
        raise ValueError(f"{protocol} does not go on as anything else")
    return kind()
