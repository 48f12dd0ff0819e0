"""Where a redirected connection was going: the kernel's conntrack says so on the accepted socket itself.

For the gate: getsockopt() asks about nothing but this socket and needs no privilege. The entry lives as long as the
connection. SO_ORIGINAL_DST (netfilter_ipv4.h), IP6T_SO_ORIGINAL_DST (netfilter_ipv6/ip6_tables.h).
"""

from __future__ import annotations

import errno
import socket
import struct

from mitmsec.core.model import Endpoint

SO_ORIGINAL_DST = 80  # the same number for both families
_SOCKADDR_V4 = struct.Struct("!2xH4s8x")
_SOCKADDR_V6 = struct.Struct("!2xH4x16s4x")
_NO_ENTRY = frozenset({errno.ENOENT, errno.ENOPROTOOPT})  # conntrack does not know it, or is not there at all


def original_destination(accepted: socket.socket) -> Endpoint | None:
    """The destination that the client connected to; None: it was not redirected, but came to this very address.

    An IPv4 connection to an IPv6 socket (v4-mapped) is asked for as what it is. Raises OSError when the connection has
    gone.
    """
    here = Endpoint.of(*accepted.getsockname()[:2])
    level, shape = (socket.IPPROTO_IPV6, _SOCKADDR_V6) if here.is_v6 else (socket.IPPROTO_IP, _SOCKADDR_V4)
    try:
        answer = accepted.getsockopt(level, SO_ORIGINAL_DST, shape.size)
    except OSError as error:
        if error.errno in _NO_ENTRY:
            return None
        raise
    port, address = shape.unpack(answer)
    family = socket.AF_INET6 if here.is_v6 else socket.AF_INET
    there = Endpoint.of(socket.inet_ntop(family, address), port)
    return None if there == here else there
