"""Names in a ZIP archive as it goes by, without unpacking anything: of its entries, and of its directory (APPNOTE 4.3).

Whatever looks like a header is taken for one, so names of an archive that lies in it uncompressed are seen too.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.core.model import Value

NAME_LIMIT_BYTES = 512  # of a longer name, its beginning
_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
_FIXED_BYTES = {_LOCAL: 30, _CENTRAL: 46}
_FLAGS, _NAME = {_LOCAL: 6, _CENTRAL: 8}, {_LOCAL: 26, _CENTRAL: 28}
_ENCRYPTED, _UTF8 = 1, 0x800


class ZipName(Value, frozen=True):
    """One header."""

    name: str
    encrypted: bool


class ZipNames:
    """One archive being read. Keeps less than a header."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> Iterator[ZipName]:
        """What `data` makes certain. All of it must be taken before the next call."""
        data = self._tail + data
        at = 0
        while (found := data.find(b"PK", at)) >= 0:
            kind = data[found : found + 4]
            if len(kind) < 4:
                break
            if (fixed := _FIXED_BYTES.get(kind)) is None:
                at = found + 1
                continue
            length = int.from_bytes(data[found + _NAME[kind] : found + _NAME[kind] + 2], "little")
            end = found + fixed + min(length, NAME_LIMIT_BYTES)
            if len(data) < found + fixed or len(data) < end:
                break
            at = end
            yield _read(data[found:end], kind)
        else:
            found = max(len(data) - 1, at)
        self._tail = data[found:]


def _read(header: bytes, kind: bytes) -> ZipName:
    flags = int.from_bytes(header[_FLAGS[kind] : _FLAGS[kind] + 2], "little")
    name = header[_FIXED_BYTES[kind] :].decode("utf-8" if flags & _UTF8 else "cp437", "replace")
    return ZipName(name=name, encrypted=bool(flags & _ENCRYPTED))
