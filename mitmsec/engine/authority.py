"""Whose request is this? The names that a request carries, compared with the name that was decided for its connection.

A policy decides about a name; a request for another name on the same connection would escape it (RFC 9110 §7.4). So
every name that a request carries must be the decided one: the authority of an absolute URI, `:authority`, `Host`.
The port is not compared: it steers nothing here (bytes go to the decided address and port only), and clients behind
port mappings are right to write another. Names compare without case and without the root's dot, IP addresses by value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from mitmsec.core.names import parse_name

_PORT = re.compile(r"[0-9]{0,5}")
_BARE = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{0,5})?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
KEY_LIMIT_CHARS = 64
PORT_LIMIT = 2**16 - 1


def host_of(authority: bytes) -> str | None:
    """The comparable host of `authority` (RFC 3986 §3.2), or None where it is malformed or carries user information."""
    try:
        text = authority.decode("ascii" if authority.isascii() else "utf-8").strip(" \t")
    except UnicodeDecodeError:
        return None
    host, port = _split(text)
    if not host or not _PORT.fullmatch(port) or "@" in host:
        return None
    return comparable(host)


def port_of(authority: bytes, scheme: str) -> int:
    """The port that `authority` names, or that of its scheme; 0 where it is malformed."""
    _, port = _split(authority.decode("ascii", "replace"))
    if not port:
        return _DEFAULT_PORTS.get(scheme, 0)
    return int(port) if _PORT.fullmatch(port) and int(port) <= PORT_LIMIT else 0


def comparable(host: str) -> str | None:
    """`host` in lower case as A-labels without the root's dot, or as a canonical address; None where it is neither."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).compressed
    except ValueError:
        pass
    if host.isascii():
        return parse_name(host)
    try:
        return parse_name(host.encode("idna").decode("ascii"))
    except UnicodeError:
        return None


def agrees(decided: str, authorities: Sequence[bytes]) -> bool:
    """Whether every one of `authorities` names `decided`, which is comparable already."""
    plain = decided.encode()
    for authority in authorities:
        if authority == plain:
            continue
        if _BARE.fullmatch(authority) and authority.rpartition(b":")[0] == plain:
            continue
        if host_of(authority) != decided:
            return False
    return True


def public_url(scheme: str, name: str, port: int, target: str) -> str:
    """An absolute URL for the record: keys of the query stay, values go; a part without a key counts as a value."""
    host = f"[{name}]" if ":" in name else name
    suffix = "" if _DEFAULT_PORTS.get(scheme) == port else f":{port}"
    path, mark, query = target.partition("#")[0].partition("?")
    if not path.startswith("/") and path != "*":
        path = "/" + path
    return f"{scheme}://{host}{suffix}{path}{mark}{_keys(query)}"


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            return "", ""
        return host, rest[1:]
    host, _, port = text.partition(":")
    return host, port


def _keys(query: str) -> str:
    parts = re.split("[&;]", query)
    return "&".join(
        f"{key[:KEY_LIMIT_CHARS]}=" if mark else "" for key, mark, _ in (part.partition("=") for part in parts)
    )
