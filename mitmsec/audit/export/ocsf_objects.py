"""The parts that OCSF events of several classes share: processes, endpoints, TLS, URLs (OCSF 1.8.0, objects)."""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export.reading import (
    address,
    host,
    is_inbound,
    made,
    number,
    port,
    split_url,
    text,
    time_ms,
    transport,
)

ANCESTORS = 4  # of a process, nearest first
EXECUTABLE, SHA_256, JA4, UNKNOWN_DEVICE = 8, 3, 1, 0
INBOUND, OUTBOUND = 1, 2
PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}
UNKNOWN = "Unknown"  # where OCSF wants a word and none is known


def actor(event: Fields) -> Fields | None:
    """Whose event it is: the program, or who gave the order."""
    process = _process(event.get("process"), ANCESTORS)
    user = made(name=text(event, "user"))
    return made(process=process, user=user) or None


def _process(found: Any, ancestors: int) -> Fields | None:
    if not isinstance(found, dict) or number(found, "pid") is None:
        return None
    path = text(found, "exe")
    uid = number(found, "uid")
    return made(
        pid=number(found, "pid"),
        name=text(found, "name"),
        path=path or text(found, "claimed_exe"),
        file=_executable(path, text(found, "sha256")) if path else None,
        created_time=time_ms(found, "started") or None,
        user=made(name=text(found, "user"), uid=None if uid is None else str(uid)),
        parent_process=_process(found.get("parent"), ancestors - 1) if ancestors else None,
    )


def _executable(path: str, sha256: str | None) -> Fields:
    hashes = [{"algorithm_id": SHA_256, "algorithm": "SHA-256", "value": sha256}] if sha256 else []
    name = path.replace("\\", "/").rpartition("/")[2]
    return made(name=name or path, path=path, type_id=EXECUTABLE, hashes=hashes)


def endpoints(event: Fields) -> Fields:
    """`src_endpoint` and `dst_endpoint`: who opened the connection, and to whom."""
    name = host(event)
    ours = made(ip=address(event, "local"), port=port(event, "local"))
    theirs = made(ip=address(event, "remote"), port=port(event, "remote"), hostname=name)
    source, destination = (theirs, ours) if is_inbound(event) else (ours, theirs)
    return made(
        src_endpoint=source if source.keys() - {"port"} else None,
        dst_endpoint=destination if destination.keys() - {"port"} else None,
    )


def connection_info(event: Fields) -> Fields:
    """Direction, transport, and the flow's id."""
    ip = address(event, "remote")
    carried = transport(event)
    return made(
        direction_id=INBOUND if is_inbound(event) else OUTBOUND,
        uid=text(event, "connection"),
        protocol_name=carried,
        protocol_num=PROTOCOL_NUMBERS.get(carried or ""),
        protocol_ver_id=None if ip is None else 6 if ":" in ip else 4,
    )


def traffic(event: Fields) -> Fields:
    """From the source to the destination is out."""
    counted: Fields = {}
    for key, name in (("bytes", "bytes"), ("datagrams", "packets")):
        sent, received = number(event, key, "sent"), number(event, key, "received")
        if sent is not None and received is not None:
            out, back = (received, sent) if is_inbound(event) else (sent, received)
            counted |= {name: sent + received, f"{name}_out": out, f"{name}_in": back}
    return counted


def client_tls(event: Fields) -> Fields | None:
    """The leg between the program and the gate; where nothing was decrypted, all there is."""
    if not isinstance(event.get("tls"), dict) or not isinstance(event["tls"].get("client"), dict):
        return None
    return made(
        version=text(event, "tls", "client", "version") or UNKNOWN,
        cipher=text(event, "tls", "client", "cipher"),
        sni=text(event, "tls", "client", "sni"),
    )


def server_tls(event: Fields) -> Fields | None:
    """The leg between the gate and the origin, of what was decrypted."""
    version = text(event, "tls", "server", "version")
    return made(version=version, cipher=text(event, "tls", "server", "cipher")) if version else None


def ja4(event: Fields) -> list[Fields]:
    """The client's fingerprint."""
    value = text(event, "tls", "client", "ja4")
    return [{"type_id": JA4, "type": "JA4", "value": value}] if value else []


def url(event: Fields) -> Fields | None:
    """Of a request; in parts where it has any."""
    whole = text(event, "url")
    parts = split_url(whole)
    return made(url_string=whole, **({} if parts is None else _parts(parts))) or None


def _parts(parts: SplitResult) -> Fields:
    return made(
        scheme=parts.scheme, hostname=parts.hostname, port=parts.port, path=parts.path, query_string=parts.query
    )
