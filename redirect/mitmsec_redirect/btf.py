"""BTF, the kernel's own description of its types: where in `struct X` the member a.b.c lies, and how long it is.

    header │ types: name, info, size or type │ per kind: members, parameters, values … │ … │ strings

A type's length follows from its kind and count alone, so one walk over the types finds where each begins; names are
read only when somebody asks. Ids count from 1; 0 is `void`. Documentation/bpf/btf.rst. The bytes come from the
kernel or from a file, and nothing is believed: whatever they are, the answer is one of the two errors or a fact.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from enum import IntEnum
from functools import cached_property
from itertools import compress
from struct import Struct

from mitmsec.core.model import Value

_HEADER = Struct("=HBBIIIII")  # magic, version, flags, header length, types offset, length, strings offset, length
_HEAD = Struct("=II")  # of a type: name, info
MAGIC = 0xEB9F
POINTER_BYTES = 8
CHAIN_LIMIT = 32  # typedefs of typedefs, arrays of arrays
NESTING_LIMIT = 16  # anonymous structs within anonymous structs
MEMBERS_LIMIT = 100_000  # looked at for one question; the largest struct of Linux has some hundreds
VARIABLE_SIZE = 1 << 32  # more than any type may have


class Kind(IntEnum):
    """The kinds of type, include/uapi/linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words that follow a type's first three: so many, and so many for each of its `count`.
_FIXED = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_EACH = {Kind.STRUCT: 3, Kind.UNION: 3, Kind.ENUM: 2, Kind.FUNC_PROTO: 2, Kind.DATASEC: 3, Kind.ENUM64: 3}
_ALIASES = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
_SIZED = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.ENUM64})
_HAS_MEMBERS = frozenset({Kind.STRUCT, Kind.UNION})


class MalformedBtf(ValueError):
    """The bytes are no BTF of this machine's byte order."""


class NoSuchMember(LookupError):
    """The types are well-formed, and have no single answer to the question."""


class Member(Value, frozen=True):
    """Where a member lies from the start of the struct that was asked about, in bytes."""

    offset: int
    size: int


class _Field(Value, frozen=True):
    """One entry of a struct or union, in bits from the start of the outermost."""

    bit: int
    type: int
    bits: int  # of a bitfield; 0: an ordinary member


class Btf:
    """Types that were read once. Raises MalformedBtf; each question may too, where it meets nonsense."""

    def __init__(self, data: bytes) -> None:
        types, self._strings = _sections(data)
        self._words = array("I", types)
        self._starts, self._infos = _starts(self._words)

    def member(self, struct: str, path: str) -> Member:
        """The member `path` ("a.b.c"; what lies in anonymous structs and unions counts as the outer one's own).

        Raises NoSuchMember: unknown, a bitfield, behind a pointer, or several structs of that name differ about it.
        """
        found = {self._walk(type_id, path) for type_id in self._named(struct, Kind.STRUCT)}
        if len(found) > 1:
            raise NoSuchMember(f"{path} of struct {struct} is ambiguous")
        only = found.pop() if found else None
        if only is None:
            raise NoSuchMember(f"struct {struct} has no {path}")
        return only

    def bit(self, struct: str, name: str) -> int:
        """Where the member `name`, a bitfield of one bit, lies: in bits from the start. Raises NoSuchMember."""
        fields = (
            self._field(type_id, name, [MEMBERS_LIMIT], NESTING_LIMIT) for type_id in self._named(struct, Kind.STRUCT)
        )
        found = {field.bit for field in fields if field is not None and field.bits == 1}
        if len(found) != 1:
            raise NoSuchMember(f"struct {struct} has no bit {name}")
        return found.pop()

    def typedef_id(self, name: str) -> int:
        """The id of the type definition `name`. Raises NoSuchMember unless there is exactly one."""
        found = self._named(name, Kind.TYPEDEF)
        if len(found) != 1:
            raise NoSuchMember(f"there are {len(found)} type definitions {name}")
        return found[0]

    def struct_id(self, name: str) -> int:
        """The id of the struct `name`. Raises NoSuchMember unless there is exactly one."""
        found = self._named(name, Kind.STRUCT)
        if len(found) != 1:
            raise NoSuchMember(f"there are {len(found)} structs {name}")
        return found[0]

    def function_id(self, name: str) -> int:
        """The id of the function `name`. Raises NoSuchMember unless there is exactly one.

        Functions are half of a kernel's types, so they are not in the index.
        """
        types = self._words.tobytes()
        spelt = _places(self._strings, b"\0" + name.encode() + b"\0")
        heads = [_HEAD.pack(at + 1, Kind.FUNC << 24 | linkage) for at in spelt for linkage in range(3)]
        found = {self._at(place) for head in heads for place in _places(types, head)} - {0}
        if len(found) != 1:
            raise NoSuchMember(f"there are {len(found)} functions {name}")
        return found.pop()

    def _at(self, place: int) -> int:
        """The id of the type that begins at this byte; 0 for none."""
        word, rest = divmod(place, self._words.itemsize)
        type_id = bisect_left(self._starts, word, 1)
        return type_id if not rest and self._starts[type_id : type_id + 1] == array("I", [word]) else 0

    # -- types ---------------------------------------------------------------------------------------------------------
    def _start(self, type_id: int) -> int:
        if not 0 < type_id < len(self._starts):
            raise MalformedBtf(f"there is no type {type_id}")
        return self._starts[type_id]

    def _kind(self, type_id: int) -> Kind:
        return Kind(self._words[self._start(type_id) + 1] >> 24 & 0x1F) if type_id else Kind.VOID

    def _named(self, name: str, kind: Kind) -> list[int]:
        """Ids of the types `name` of this kind."""
        return [type_id for type_id in self._index.get(name.encode(), ()) if self._kind(type_id) is kind]

    @cached_property
    def _index(self) -> dict[bytes, list[int]]:
        """Ids of structs and type definitions by name; made when first asked for."""
        words, strings, starts = self._words, self._strings, self._starts
        wanted = {info for info in self._infos if info >> 24 & 0x1F in (Kind.STRUCT, Kind.TYPEDEF)}
        index: dict[bytes, list[int]] = {}
        infos = map(words[1:].__getitem__, starts[1:])
        for type_id in compress(range(1, len(starts)), map(wanted.__contains__, infos)):
            at = words[starts[type_id]]
            index.setdefault(strings[at : strings.find(0, at)], []).append(type_id)
        return index

    def _plain(self, type_id: int) -> int:
        """The type behind its aliases and qualifiers."""
        for _ in range(CHAIN_LIMIT):
            if self._kind(type_id) not in _ALIASES:
                return type_id
            type_id = self._words[self._start(type_id) + 2]
        raise MalformedBtf("a chain of type definitions does not end")

    def _size(self, type_id: int) -> int:
        count = 1
        for _ in range(CHAIN_LIMIT):
            type_id = self._plain(type_id)
            kind, at = self._kind(type_id), self._start(type_id) if type_id else 0
            if kind is Kind.PTR:
                return count * POINTER_BYTES
            if kind in _SIZED:
                return count * self._words[at + 2]
            if kind is not Kind.ARRAY:
                raise MalformedBtf(f"a member is a {kind.name}")
            count *= self._words[at + 5]
            type_id = self._words[at + 3]
            if count >= VARIABLE_SIZE:
                break
        raise MalformedBtf("an array is too large to be one")

    # -- members -------------------------------------------------------------------------------------------------------
    def _walk(self, type_id: int, path: str) -> Member | None:
        bit = 0
        budget = [MEMBERS_LIMIT]
        for name in path.split("."):
            type_id = self._plain(type_id)
            if self._kind(type_id) not in _HAS_MEMBERS:
                return None
            field = self._field(type_id, name, budget, NESTING_LIMIT)
            if field is None or field.bits or field.bit % 8:
                return None
            bit, type_id = bit + field.bit, field.type
        plain = self._plain(type_id)
        if self._kind(plain) is Kind.INT and self._is_bitfield(plain):
            return None
        return Member(offset=bit // 8, size=self._size(plain))

    def _field(self, type_id: int, name: str, budget: list[int], depth: int) -> _Field | None:
        """The member `name`, here or in anonymous members."""
        anonymous: list[_Field] = []
        wanted = name.encode() + b"\0"
        for name_at, field in self._fields(type_id, budget):
            if name and self._strings.startswith(wanted, name_at):
                return field
            if not name_at:
                anonymous.append(field)
        for outer in anonymous:
            inside = self._plain(outer.type)
            if self._kind(inside) not in _HAS_MEMBERS:
                continue
            if not depth:
                raise MalformedBtf("anonymous members lie too deep")
            if (inner := self._field(inside, name, budget, depth - 1)) is not None:
                return _Field(outer.bit + inner.bit, inner.type, inner.bits)
        return None

    def _fields(self, type_id: int, budget: list[int]) -> Iterator[tuple[int, _Field]]:
        """Name and place of each member. In a struct with the flag, the offset's upper byte is a bitfield's width."""
        at = self._start(type_id)
        info = self._words[at + 1]
        for index in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            budget[0] -= 1
            if budget[0] < 0:
                raise MalformedBtf("there are too many members")
            name, member_type, place = self._words[index : index + 3]
            flagged = info >> 31
            yield name, _Field(place & 0xFFFFFF if flagged else place, member_type, place >> 24 if flagged else 0)

    def _is_bitfield(self, type_id: int) -> bool:
        """The old way to write one: an integer with fewer bits than its bytes hold, or that begins within them."""
        at = self._start(type_id)
        encoding = self._words[at + 3]
        return encoding & 0xFF != self._words[at + 2] * 8 or encoding >> 16 & 0xFF != 0


def _sections(data: bytes) -> tuple[bytes, bytes]:
    """Types and strings."""
    if len(data) < _HEADER.size:
        raise MalformedBtf("shorter than a header")
    magic, version, _, header, types_at, types_length, strings_at, strings_length = _HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise MalformedBtf(f"not BTF version 1 of a {sys.byteorder}-endian machine")
    types_at, strings_at = header + types_at, header + strings_at
    if (
        header < _HEADER.size
        or types_length % 4
        or max(types_at + types_length, strings_at + strings_length) > len(data)
    ):
        raise MalformedBtf("sections do not lie within the data")
    strings = data[strings_at : strings_at + strings_length]
    if not strings.startswith(b"\0") or not strings.endswith(b"\0"):
        raise MalformedBtf("strings do not begin and end with zero")
    return data[types_at : types_at + types_length], strings


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    """Where `wanted` begins in `data`."""
    place = data.find(wanted)
    while place >= 0:
        yield place
        place = data.find(wanted, place + 1)


class _Lengths(dict[int, int]):
    """How many words a type has whose second word is this one: worked out once for each, and there are few."""

    def __missing__(self, info: int) -> int:
        number = info >> 24 & 0x1F
        if not number or number not in Kind:
            raise MalformedBtf(f"there is a type of the unknown kind {number}")
        kind = Kind(number)
        length = self[info] = 3 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        return length


def _starts(words: array[int]) -> tuple[array[int], frozenset[int]]:
    """Where each type begins, by id, and which second words there are.

    A kernel has some hundred thousand types, and each supervisor that starts walks them all.
    """
    starts = array("I", [0])
    append, lengths = starts.append, _Lengths()
    at, end, seconds = 0, len(words), words[1:]
    try:
        while at < end:
            append(at)
            at += lengths[seconds[at]]
    except IndexError:
        at = end + 1
    if at != end:
        raise MalformedBtf("the last type is cut off")
    return starts, frozenset(lengths)
