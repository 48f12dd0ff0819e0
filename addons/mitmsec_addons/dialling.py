"""Connections to the servers that inspectors ask, straight to them. Workers may connect nowhere: theirs are lent."""

from __future__ import annotations

import asyncio
import ipaddress
import posixpath
import socket
from collections.abc import Awaitable, Callable

INSTREAM = b"zINSTREAM\0"

SHARED = frozenset((
    "", "bin", "boot", "dev", "dev/shm", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc", "root", "run",
    "run/lock", "run/user", "sbin", "srv", "sys", "tmp", "usr", "var", "var/lib", "var/lock", "var/log", "var/run",
    "var/spool", "var/tmp",
))  # fmt: skip
"""The machine's folders below `/`, in which sockets of any server may lie."""

type Connect = Callable[[str], Awaitable[socket.socket]]
"""A connection to an address of the policy's. Raises OSError."""


async def dial(address: str) -> socket.socket:
    """Straight to it. Raises OSError."""
    made = socket.socket(socket.AF_UNIX if address.startswith("/") else endpoint(address)[0])
    made.setblocking(False)
    try:
        where = address if address.startswith("/") else endpoint(address)[1]
        await asyncio.get_running_loop().sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


async def dial_clamd(address: str) -> socket.socket:
    """The same to a clamd, told that the content of one stream follows (clamd(8), INSTREAM).

    Outside of a session clamd takes one command from a connection, and this was it. Raises OSError.
    """
    made = await dial(address)
    try:
        await asyncio.get_running_loop().sock_sendall(made, INSTREAM)
    except BaseException:
        made.close()
        raise
    return made


def socket_path(address: str) -> str:
    """`/run/clamav/clamd.ctl`: a path whose folder may be shown to the broker, so it must be the server's own.

    Raises ValueError.
    """
    folder = posixpath.dirname(address)
    if posixpath.normpath(address) != address or address.startswith("//"):
        raise ValueError(f"{address!r} goes a roundabout way: write it without //, . and ..")
    if folder[1:] in SHARED:
        raise ValueError(
            f"{address!r} lies in {folder} among things of others, and the broker is shown that folder: let the"
            " server make it in a folder of its own, such as /run/clamav/clamd.ctl"
        )
    return address


def endpoint(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """`127.0.0.1:3310`, `[::1]:3310`. Raises ValueError. Names are none: nobody is asked for them."""
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(f"{address!r} is neither the path of a socket nor an IP address with a port") from None
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} has no port")
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6, (str(ip), int(port))
