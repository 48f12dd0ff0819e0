"""ClientHellos for tests: real ones from tests/data/hellos, and any others that are wanted, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "hellos"
REAL = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.bin"))}

Extension = tuple[int, bytes]


def vector(data: bytes, size_of_length: int = 2) -> bytes:
    return len(data).to_bytes(size_of_length) + data


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2) for value in values)


def server_name(name: bytes, kind: int = 0) -> Extension:
    return 0, vector(bytes([kind]) + vector(name))


def alpn(*names: bytes) -> Extension:
    return 16, vector(b"".join(vector(name, 1) for name in names))


def body(
    extensions: Sequence[Extension] | None = (),
    *,
    version: int = 0x0303,
    session: bytes = b"",
    ciphers: bytes = b"\x13\x01",
    compression: bytes = b"\x00",
) -> bytes:
    """A hello's body; `extensions` None leaves even their length out."""
    start = version.to_bytes(2) + bytes(32) + vector(session, 1) + vector(ciphers) + vector(compression, 1)
    if extensions is None:
        return start
    return start + vector(b"".join(kind.to_bytes(2) + vector(data) for kind, data in extensions))


def message(inner: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(inner, 3)


def records(data: bytes, sizes: Sequence[int] = ()) -> bytes:
    """`data` in records of these sizes, the rest in records as large as allowed."""
    out = b""
    rest = iter(sizes)
    while data:
        size = next(rest, 1 << 14)
        out += b"\x16\x03\x01" + vector(data[:size])
        data = data[size:]
    return out


def hello(*extensions: Extension) -> bytes:
    return records(message(body(extensions)))
