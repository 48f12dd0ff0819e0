"""What Windows fills in, as C lays it out by its declarations: rows of sockets (tcpmib.h), of services (winsvc.h)."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_ubyte, c_uint32, c_uint64, c_void_p

from mitmsec.core.model import Transport
from mitmsec_redirect.windows_rows import EPOCH_1601_NS, Kind, OwnedSocket

V4, V6, MODULE = c_uint32, c_ubyte * 16, c_uint64 * 16
TCP4 = [("state", c_uint32), ("local", V4), ("local_port", c_uint32), ("remote", V4), ("remote_port", c_uint32)]
TCP6 = [
    *(("local", V6), ("local_scope", c_uint32), ("local_port", c_uint32), ("remote", V6)),
    *(("remote_scope", c_uint32), ("remote_port", c_uint32), ("state", c_uint32)),
]
UDP4 = [("local", V4), ("local_port", c_uint32)]
UDP6 = [("local", V6), ("local_scope", c_uint32), ("local_port", c_uint32)]
PID = [("pid", c_uint32)]
MADE = [("created", c_int64), ("module", MODULE)]
BOUND = [("created", c_int64), ("flags", c_uint32), ("module", MODULE)]
FIELDS = {
    Kind.TCP4_PID: TCP4 + PID,
    Kind.TCP4_MODULE: TCP4 + PID + MADE,
    Kind.TCP6_PID: TCP6 + PID,
    Kind.TCP6_MODULE: TCP6 + PID + MADE,
    Kind.UDP4_PID: UDP4 + PID,
    Kind.UDP4_MODULE: UDP4 + PID + BOUND,
    Kind.UDP6_PID: UDP6 + PID,
    Kind.UDP6_MODULE: UDP6 + PID + BOUND,
}


def row_of(kind: Kind) -> type[Structure]:
    return type("Row", (Structure,), {"_fields_": FIELDS[kind]})


def table_of(kind: Kind, sockets: Sequence[OwnedSocket], spare: bytes = b"") -> bytes:
    """The whole table, with what the system leaves behind its last row."""
    rows = row_of(kind) * len(sockets)
    fields = [("count", c_uint32), ("rows", rows)]
    table = type("Table", (Structure,), {"_fields_": fields})()
    table.count = len(sockets)
    for row, one in zip(table.rows, sockets, strict=True):
        row.pid = one.pid or 0
        _put(row, "local", one.local.address, one.local.port, is_v6=kind.is_v6)
        if kind.transport is Transport.TCP:
            row.state = one.state
            remote = (one.remote.address, one.remote.port) if one.remote else ("::" if kind.is_v6 else "0.0.0.0", 0)
            _put(row, "remote", *remote, is_v6=kind.is_v6)
        if kind.has_module and one.created_ns is not None:
            row.created = (one.created_ns + EPOCH_1601_NS) // 100
    return bytes(table) + spare


def _put(row: Structure, name: str, address: str, port: int, *, is_v6: bool) -> None:
    packed = socket.inet_pton(socket.AF_INET6 if is_v6 else socket.AF_INET, address)
    setattr(row, name, V6(*packed) if is_v6 else int.from_bytes(packed, "little"))
    setattr(row, f"{name}_port", socket.htons(port))


def size_of(kind: Kind) -> int:
    return ctypes.sizeof(row_of(kind))


class ServiceStatusProcess(Structure):
    """SERVICE_STATUS_PROCESS: type, state, controls, two exit codes, check point, wait hint; then these."""

    _fields_ = (("before", c_uint32 * 7), ("pid", c_uint32), ("flags", c_uint32))


class EnumServiceStatusProcess(Structure):
    """ENUM_SERVICE_STATUS_PROCESSW."""

    _fields_ = (("name", c_void_p), ("display_name", c_void_p), ("status", ServiceStatusProcess))


def services_of(services: Sequence[tuple[str, int]], spare: int = 0) -> ctypes.Array[ctypes.c_char]:
    """A buffer as EnumServicesStatusExW leaves it: rows, and behind them the names that they point to."""
    names = [f"{name}\0".encode("utf-16-le") for name, _ in services]
    at = ctypes.sizeof(EnumServiceStatusProcess) * len(services)
    buffer = ctypes.create_string_buffer(at + sum(map(len, names)) + spare)
    rows = (EnumServiceStatusProcess * len(services)).from_buffer(buffer)
    for row, name, (_, pid) in zip(rows, names, services, strict=True):
        row.name = row.display_name = ctypes.addressof(buffer) + at
        row.status.pid = pid
        buffer[at : at + len(name)] = name
        at += len(name)
    return buffer
