"""Headers of 7z archives (7zFormat.txt of the LZMA SDK), and how to unpack what they describe."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator, Sequence

from mitmsec.core.model import Value
from mitmsec_addons.inflating import SLICE_BYTES, Damaged, Deflated, Stored, Unfolding, bzipped

FILES_LIMIT = 20_000
CODERS_LIMIT = 8
WINDOW_LIMIT_BYTES = 32 << 20
(END, HEADER, MAIN, FILES, PACK, UNPACK, SUBSTREAMS, SIZE, CRC, FOLDER, CODER_SIZES, COUNTS, EMPTY, NAMES, ENCODED) = (
    0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 23,
)  # fmt: skip
_LZMA, _LZMA2, _DELTA, _AES = b"\3\1\1", b"\x21", b"\3", b"\6\xf1\7\1"
_BRANCHES = {
    b"\3\3\1\3": lzma.FILTER_X86, b"\3\3\2\5": lzma.FILTER_POWERPC, b"\3\3\4\1": lzma.FILTER_IA64,
    b"\3\3\5\1": lzma.FILTER_ARM, b"\3\3\7\1": lzma.FILTER_ARMTHUMB, b"\3\3\x08\5": lzma.FILTER_SPARC,
}  # fmt: skip
_ALONE: dict[bytes, Callable[[], Unfolding]] = {b"\0": Stored, b"\4\1\x08": Deflated, b"\4\2\2": bzipped}


class Malformed(Exception):
    """It is no such header, or one that is not known here; the text says why."""


class Coder(Value, frozen=True):
    """One step of packing."""

    method: bytes
    properties: bytes


class Folder(Value, frozen=True):
    """Some files, packed together. `coders` in the order in which they are undone."""

    coders: tuple[Coder, ...]
    at: int  # in what lies behind the first header
    packed_bytes: int
    unpacked_bytes: int
    file_sizes: tuple[int, ...] = ()


class Header(Value, frozen=True):
    """`names` are those of all files that have content, in the order in which they are packed."""

    folders: tuple[Folder, ...]
    names: tuple[str, ...]


class _Cursor:
    """What is read from left to right. Everything raises Malformed at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._data):
            raise Malformed("damaged: its header ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """Leading ones of the first byte count the bytes that follow; its other bits are the highest."""
        first, value, mask = self.byte(), 0, 0x80
        for place in range(8):
            if not first & mask:
                return value | (first & (mask - 1)) << (8 * place)
            value |= self.byte() << (8 * place)
            mask >>= 1
        return value

    def count(self, limit: int = FILES_LIMIT) -> int:
        if (count := self.number()) > limit:
            raise Malformed(f"its header counts more than {limit}")
        return count

    def bits(self, count: int) -> list[bool]:
        data = self.take((count + 7) // 8)
        return [bool(data[at // 8] & 0x80 >> at % 8) for at in range(count)]

    def digests(self, count: int) -> int:
        """Passed over; how many there were."""
        defined = count if self.byte() else sum(self.bits(count))
        self.take(4 * defined)
        return defined


def header_of(data: bytes) -> Header | Folder:
    """A header; or, of one that is packed itself, how. Raises Malformed."""
    if not data:
        return Header((), ())
    cursor = _Cursor(data)
    match cursor.byte():
        case 1:
            return _header(cursor)
        case 23:
            folders = _streams(cursor)
            if len(folders) != 1:
                raise Malformed("damaged: its header is packed in several pieces")
            return folders[0]
        case _:
            raise Malformed("damaged: its header is none")


def _header(cursor: _Cursor) -> Header:
    folders: tuple[Folder, ...] = ()
    names: tuple[str, ...] = ()
    seen: set[int] = set()
    while (kind := _new(cursor, seen)) != END:
        if kind == MAIN:
            folders = _streams(cursor)
        elif kind == FILES:
            names = _names(cursor)
        else:
            raise Malformed("its header has something that is not known here")
    return Header(folders, names)


def _new(cursor: _Cursor, seen: set[int]) -> int:
    """What comes next; each may come once. Raises Malformed."""
    kind = cursor.byte()
    if kind in seen:
        raise Malformed("damaged: its header says something twice")
    seen.add(kind)
    return kind


def _names(cursor: _Cursor) -> tuple[str, ...]:
    count = cursor.count()
    names: list[str] = [""] * count
    empty = [False] * count
    while (kind := cursor.byte()) != END:
        inner = _Cursor(cursor.take(cursor.number()))
        if kind == NAMES and not inner.byte():
            names = inner.take(len(inner._data) - 1).decode("utf-16-le", "replace").split("\0")[:count]
        elif kind == EMPTY:
            empty = inner.bits(count)
    return tuple(name for name, is_empty in zip(names, empty, strict=False) if not is_empty)


def _streams(cursor: _Cursor) -> tuple[Folder, ...]:
    at, packed, folders = 0, [], []  # type: int, list[int], list[tuple[tuple[Coder, ...], int]]
    counts: list[int] | None = None
    sizes: list[list[int]] = []
    seen: set[int] = set()
    while (kind := _new(cursor, seen)) != END:
        if kind == PACK:
            at, packed = _packed(cursor)
        elif kind == UNPACK:
            folders = _folders(cursor)
        elif kind == SUBSTREAMS:
            counts, sizes = _substreams(cursor, [size for _, size in folders])
        else:
            raise Malformed("its header has something that is not known here")
    if len(packed) != len(folders):
        raise Malformed("some of it is packed in several streams, which is not known here")
    made = []
    for number, ((coders, size), packed_bytes) in enumerate(zip(folders, packed, strict=True)):
        files = (size,) if counts is None else tuple(sizes[number])
        made.append(Folder(coders, at, packed_bytes, size, files))
        at += packed_bytes
    return tuple(made)


def _packed(cursor: _Cursor) -> tuple[int, list[int]]:
    at, count = cursor.number(), cursor.count()
    sizes: list[int] = []
    while (kind := cursor.byte()) != END:
        if kind == SIZE:
            sizes = [cursor.number() for _ in range(count)]
        elif kind == CRC:
            cursor.digests(count)
        else:
            raise Malformed("its header has something that is not known here")
    return at, sizes


def _folders(cursor: _Cursor) -> list[tuple[tuple[Coder, ...], int]]:
    """Each with its coders and the size of what comes out."""
    if cursor.byte() != FOLDER:
        raise Malformed("damaged: its header is none")
    count = cursor.count()
    if cursor.byte():
        raise Malformed("its header lies elsewhere, which is not known here")
    found = [_folder(cursor) for _ in range(count)]
    sizes: list[int] = []
    while (kind := cursor.byte()) != END:
        if kind == CODER_SIZES:
            sizes = [[cursor.number() for _ in coders][last] for coders, last in found]
        elif kind == CRC:
            cursor.digests(count)
        else:
            raise Malformed("its header has something that is not known here")
    return [(coders, size) for (coders, _), size in zip(found, sizes, strict=False)]


def _folder(cursor: _Cursor) -> tuple[tuple[Coder, ...], int]:
    """Its coders in the order in which they are undone, and the number of the last in the header."""
    coders = []
    for _ in range(cursor.count(CODERS_LIMIT)):
        flags = cursor.byte()
        method = cursor.take(flags & 0x0F)
        if flags & 0x10 and (cursor.number(), cursor.number()) != (1, 1):
            raise Malformed(f"some of it is packed by the method {method.hex()}, which is not known here")
        coders.append(Coder(method, cursor.take(cursor.number()) if flags & 0x20 else b""))
    takes_from = {}
    for _ in range(len(coders) - 1):
        taker = cursor.number()
        takes_from[cursor.number()] = taker  # by whose output is taken: who takes it
    first = next((one for one in range(len(coders)) if one not in takes_from.values()), None)
    order = []
    while first is not None and first < len(coders) and first not in order:
        order.append(first)
        first = takes_from.get(first)
    if len(order) != len(coders) or not order:
        raise Malformed("damaged: its header is none")
    return tuple(coders[one] for one in order), order[-1]


def _substreams(cursor: _Cursor, wholes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    counts = [1] * len(wholes)
    sizes = [[whole] for whole in wholes]
    kind = cursor.byte()
    if kind == COUNTS:
        counts = [cursor.count() for _ in wholes]
        if sum(counts) > FILES_LIMIT:
            raise Malformed(f"its header counts more than {FILES_LIMIT}")
        sizes = [[] for _ in wholes]
        kind = cursor.byte()
        for number, (count, whole) in enumerate(zip(counts, wholes, strict=True)):
            some = [cursor.number() for _ in range(count - 1)] if kind == SIZE else []
            sizes[number] = [*some, whole - sum(some)] if count else []
        kind = cursor.byte() if kind == SIZE else kind
    while kind != END:  # digests of those that have none yet: how many is not needed, they are the last
        if kind != CRC:
            raise Malformed("its header has something that is not known here")
        return counts, _after_digests(cursor, sizes)
    return counts, sizes


def _after_digests(cursor: _Cursor, sizes: list[list[int]]) -> list[list[int]]:
    cursor.digests(sum(map(len, sizes)))
    if cursor.byte() != END:
        raise Malformed("its header has something that is not known here")
    return sizes


def unfolded(folder: Folder, packed: bytes) -> Iterator[bytes]:
    """What comes out, in slices. Raises Malformed, Damaged."""
    data = packed[folder.at : folder.at + folder.packed_bytes]
    left = folder.unpacked_bytes
    for piece in _unpacker(folder.coders)(data):
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return
    if left:
        raise Damaged("damaged")


def _unpacker(coders: Sequence[Coder]) -> Callable[[bytes], Iterator[bytes]]:
    if any(coder.method == _AES for coder in coders):
        raise Malformed("encrypted")
    if len(coders) == 1 and coders[0].method in _ALONE:
        return _ALONE[coders[0].method]().feed
    filters = [_filter(coder) for coder in coders]
    return lambda data: _raw(data, filters[::-1])


def _filter(coder: Coder) -> dict[str, int]:
    if coder.method == _LZMA and len(coder.properties) == 5:
        packed, window_bytes = coder.properties[0], int.from_bytes(coder.properties[1:], "little")
        made = {"id": lzma.FILTER_LZMA1, "lc": packed % 9, "lp": packed // 9 % 5, "pb": packed // 45}
    elif coder.method == _LZMA2 and len(coder.properties) == 1:
        code = coder.properties[0]
        window_bytes = (2 | code & 1) << min(code // 2 + 11, 40)
        made = {"id": lzma.FILTER_LZMA2}
    elif coder.method == _DELTA and len(coder.properties) == 1:
        return {"id": lzma.FILTER_DELTA, "dist": coder.properties[0] + 1}
    elif coder.method in _BRANCHES:
        return {"id": _BRANCHES[coder.method]}
    else:
        raise Malformed(f"some of it is packed by the method {coder.method.hex()}, which is not known here")
    if window_bytes > WINDOW_LIMIT_BYTES:
        raise Malformed(f"needs more than {WINDOW_LIMIT_BYTES} bytes to unpack")
    return {**made, "dict_size": max(window_bytes, 4096)}


def _raw(data: bytes, filters: list[dict[str, int]]) -> Iterator[bytes]:
    try:
        state = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        piece = state.decompress(data, SLICE_BYTES)
        while piece:
            yield piece
            piece = b"" if state.eof else state.decompress(b"", SLICE_BYTES)
    except (lzma.LZMAError, ValueError, OverflowError):
        raise Damaged("damaged") from None
