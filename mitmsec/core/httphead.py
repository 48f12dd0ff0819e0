"""The host that an HTTP/1 request head names (RFC 9112 §3.2), for deciding, not for serving.

The whole head is read before a name is given: a second Host field may stand anywhere in it.
"""

from __future__ import annotations

import re

from mitmsec.core.clienthello import Malformed, NeedMore
from mitmsec.core.model import Value
from mitmsec.core.names import is_address, parse_name

HEAD_LIMIT_BYTES = 64 * 1024  # above what common servers accept (8 to 64 KiB)

_FIELD = re.compile(rb"([^\x00-\x20\x7f:]+)([ \t]*):([^\x00-\x08\x0a-\x1f\x7f]*)")
_ABSOLUTE = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


class NamedHost(Value, frozen=True):
    """`name` is comparable, or None; `reason` then says why, where there was something to read."""

    name: str | None
    reason: str = ""
    through_proxy: bool = False  # CONNECT, or a target in absolute form


def host_of(method: bytes, target: bytes, data: bytes, fields_at: int) -> NamedHost | NeedMore | Malformed:
    """The host of the request whose field lines begin at `fields_at` of `data`. Never raises, whatever the bytes."""
    blank_at = _blank_at(data, fields_at)
    if blank_at is None:
        return Malformed(reason="request head over 64 KiB") if len(data) >= HEAD_LIMIT_BYTES else NeedMore()
    hosts = _host_fields(data[fields_at:blank_at])
    if isinstance(hosts, Malformed | NamedHost):
        return hosts
    authority = _authority(method, target)
    named = [_bare(value) for value in hosts]
    if authority is not None:
        named.append(_bare(authority.rpartition(b"@")[2]))
    return _agreed(named, through_proxy=authority is not None)


def _blank_at(data: bytes, fields_at: int) -> int | None:
    """Where the field lines end, before the line break that an empty line follows; None: not yet."""
    if data.startswith((b"\n", b"\r\n"), fields_at, HEAD_LIMIT_BYTES):
        return fields_at
    found = (data.find(blank, fields_at, HEAD_LIMIT_BYTES) for blank in (b"\n\r\n", b"\n\n"))
    return min((at for at in found if at >= 0), default=None)


def _host_fields(block: bytes) -> list[bytes] | NamedHost | Malformed:
    """Every Host value. A Host field that only some readers would see gives no name at all."""
    hosts: list[bytes] = []
    last_is_host = False
    for line in block.split(b"\n") if block else []:
        line = line.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t"):  # a folded line (RFC 9112 §5.2)
            if last_is_host:
                return NamedHost(name=None, reason="folded Host field")
            continue
        field = _FIELD.fullmatch(line)
        if field is None:
            return Malformed(reason="request head with a line that is no field")
        last_is_host = field[1].lower() == b"host"
        if last_is_host:
            if field[2]:
                return NamedHost(name=None, reason="space after the name of the Host field")
            hosts.append(field[3].strip(b" \t"))
    return hosts


def _authority(method: bytes, target: bytes) -> bytes | None:
    """Where the request is to go if this is said to a proxy."""
    if method == b"CONNECT":
        return target
    absolute = _ABSOLUTE.match(target)
    return absolute[1] if absolute else None


def _bare(value: bytes) -> str:
    """host[:port] without the port."""
    host = value.decode("latin-1").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".")


def _agreed(named: list[str], *, through_proxy: bool) -> NamedHost:
    def nameless(reason: str) -> NamedHost:
        return NamedHost(name=None, reason=reason, through_proxy=through_proxy)

    if not named:
        return nameless("no Host field")
    if len(set(named)) > 1:
        return nameless("different hosts in one request")
    name = parse_name(named[0])
    if name is None:
        return nameless("" if is_address(named[0]) else "Host is not a host name")
    return NamedHost(name=name, through_proxy=through_proxy)
