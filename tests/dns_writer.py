"""DNS messages for tests, written by hand: nothing here is shared with what reads them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, CNAME, AAAA, TXT, HTTPS = 1, 5, 28, 16, 65
POINTER_TO_QUESTION = b"\xc0\x0c"


def wire(name: str) -> bytes:
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


@dataclass(frozen=True)
class Record:
    """One answer. `owner` is a name, or bytes as they are to stand there."""

    owner: str | bytes
    kind: int
    data: bytes
    ttl_s: int = 300
    of: int = 1

    def written(self) -> bytes:
        owner = self.owner if isinstance(self.owner, bytes) else wire(self.owner)
        return owner + struct.pack("!HHIH", self.kind, self.of, self.ttl_s, len(self.data)) + self.data


def address(owner: str | bytes, text: str, ttl_s: int = 300) -> Record:
    ip = ipaddress.ip_address(text)
    return Record(owner, A if ip.version == 4 else AAAA, ip.packed, ttl_s)


def alias(owner: str | bytes, target: str | bytes, ttl_s: int = 300) -> Record:
    return Record(owner, CNAME, target if isinstance(target, bytes) else wire(target), ttl_s)


def service(owner: str | bytes, target: str = "", **hints: Sequence[str]) -> Record:
    data = struct.pack("!H", 1) + wire(target) + struct.pack("!HH", 1, 3) + b"\x02h2"
    for key, name in ((4, "v4"), (6, "v6")):
        packed = b"".join(ipaddress.ip_address(text).packed for text in hints.get(name, ()))
        data += struct.pack("!HH", key, len(packed)) + packed if packed else b""
    return Record(owner, HTTPS, data)


def query(name: str, kind: int = A, number: int = 7) -> bytes:
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + wire(name) + struct.pack("!HH", kind, 1)


def response(name: str, *records: Record, kind: int = A, number: int = 7, flags: int = 0x8180) -> bytes:
    head = struct.pack("!HHHHHH", number, flags, 1, len(records), 0, 0)
    return head + wire(name) + struct.pack("!HH", kind, 1) + b"".join(record.written() for record in records)
