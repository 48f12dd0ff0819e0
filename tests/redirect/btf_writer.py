"""Writes BTF for the tests of its reader: types in the order of their ids, from 1."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mitmsec_redirect.btf import Kind

HEADER = struct.Struct("=HBBIIIII")


@dataclass
class BtfWriter:
    """Collects types; each method answers with the id of what it added."""

    types: bytearray = field(default_factory=bytearray)
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    count: int = 0

    def text(self, name: str) -> int:
        if not name:
            return 0
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name) - 1

    def add(self, kind: int, name: str, size_or_type: int, *more: int, count: int = 0, flag: bool = False) -> int:
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack(f"={3 + len(more)}I", self.text(name), info, size_or_type, *more)
        self.count += 1
        return self.count

    def integer(self, size: int, bits: int | None = None, bit: int = 0) -> int:
        return self.add(Kind.INT, f"int{size}", size, (size * 8 if bits is None else bits) | bit << 16)

    def pointer(self, to: int = 0) -> int:
        return self.add(Kind.PTR, "", to)

    def array(self, of: int, length: int) -> int:
        return self.add(Kind.ARRAY, "", 0, of, 1, length)

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], flag: bool = False, kind: int = Kind.STRUCT
    ) -> int:
        """Members: name, type, bit (with `flag`: the width of a bitfield in the upper byte)."""
        words = [word for name_, type_id, bit in members for word in (self.text(name_), type_id, bit)]
        return self.add(kind, name, size, *words, count=len(members), flag=flag)

    def bytes(self) -> bytes:
        header = HEADER.pack(0xEB9F, 1, 0, HEADER.size, 0, len(self.types), len(self.types), len(self.strings))
        return header + bytes(self.types) + bytes(self.strings)
