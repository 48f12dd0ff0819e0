"""A Merkle tree over the log (RFC 6962 §2.1), kept as tiles of 256 hashes (C2SP tlog-tiles).

    level 1   │ tile 0: a hash for each full tile below …                     │
    level 0   │ tile 0: 256 events │ tile 1: 256 events │ tile 2: 44, so far  │

    leaf = SHA-256(0x00 || envelope)          node = SHA-256(0x01 || left || right)

Appending changes the last tile of some levels and no other byte: a full tile stays what it is. The root over the first
n events stands for each of them. That an event is among them (`inclusion`), and that a longer log begins with a shorter
one (`consistency`), takes some dozen hashes to show, and no log to check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from mitmsec.core.model import Value

HASH_BYTES = 32
HEIGHT = 8
WIDTH = 1 << HEIGHT
TILE_BYTES = WIDTH * HASH_BYTES

type Tiles = Callable[[int, int], bytes]
"""The hashes of the tile of this level and number, as many as there are. Raises LookupError for one that is not."""


def leaf_hash(envelope: bytes) -> bytes:
    """Of one event."""
    return hashlib.sha256(b"\x00" + envelope).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of the two halves of a tree."""
    return hashlib.sha256(b"\x01" + left + right).digest()


EMPTY_ROOT = hashlib.sha256(b"").digest()


class Tile(Value, frozen=True):
    """Up to WIDTH hashes, one behind the other: of events, or of the full tiles of the level below."""

    level: int
    number: int
    hashes: bytes


class Tree(Value, frozen=True):
    """Its right edge, which is all that appending needs: of each level the hashes behind its last full tile."""

    size: int = 0
    edge: tuple[bytes, ...] = ()

    def grown(self, leaves: Sequence[bytes]) -> tuple[Tree, list[Tile]]:
        """The tree with these leaves behind the others, and each tile that became another by it."""
        edge, tiles = [bytearray(hashes) for hashes in self.edge], []
        touched = {0} if leaves else set[int]()
        for size, leaf in enumerate(leaves, self.size + 1):
            level, hashed = 0, leaf
            while True:
                if level == len(edge):
                    edge.append(bytearray())
                edge[level] += hashed
                touched.add(level)
                if len(edge[level]) < TILE_BYTES:
                    break
                full = bytes(edge[level])
                tiles.append(Tile(level, (size >> HEIGHT * (level + 1)) - 1, full))
                edge[level].clear()
                level, hashed = level + 1, _perfect(full)
        grown = Tree(self.size + len(leaves), tuple(map(bytes, edge)))
        return grown, tiles + [grown._last(level) for level in sorted(touched) if grown.edge[level]]

    def _last(self, level: int) -> Tile:
        return Tile(level, self.size >> HEIGHT * (level + 1), self.edge[level])

    def root(self) -> bytes:
        """One hash for all events."""
        root = b""
        for hashes in self.edge:
            peaks = [*_peaks(hashes), *([root] if root else [])]
            root = peaks.pop() if peaks else root
            while peaks:
                root = node_hash(peaks.pop(), root)
        return root or EMPTY_ROOT


def tree_of(size: int, tiles: Tiles) -> Tree:
    """The tree of that size whose tiles are there. Raises LookupError where they are not."""
    edge, level = [], 0
    while size >> HEIGHT * level:
        number, count = divmod(size >> HEIGHT * level, WIDTH)
        edge.append(_cut(tiles(level, number), count) if count else b"")
        level += 1
    return Tree(size, tuple(edge))


def inclusion(number: int, size: int, tiles: Tiles) -> list[bytes]:
    """That event `number` is among the first `size` (RFC 9162 §2.1.3.1). Raises LookupError."""
    path, begin, end = list[bytes](), 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if number < middle:
            path.append(_subtree(middle, end, tiles))
            end = middle
        else:
            path.append(_subtree(begin, middle, tiles))
            begin = middle
    return path[::-1]


def consistency(old: int, new: int, tiles: Tiles) -> list[bytes]:
    """That the first `new` events begin with the first `old` (RFC 9162 §2.1.4.1). Raises LookupError."""
    if not 0 < old < new:
        return []
    path, begin, end, is_whole = list[bytes](), 0, new, True
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_subtree(middle, end, tiles))
            end = middle
        else:
            path.append(_subtree(begin, middle, tiles))
            begin, is_whole = middle, False
    return ([] if is_whole else [_subtree(begin, end, tiles)]) + path[::-1]


def root_from(leaf: bytes, number: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root of which an inclusion path proves that it has this leaf; None: it is no such path (§2.1.3.2)."""
    if not 0 <= number < size:
        return None
    at, last, root = number, size - 1, leaf
    for hashed in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = node_hash(hashed, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, hashed)
        at, last = at >> 1, last >> 1
    return root if last == 0 else None


def is_consistent(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a consistency path proves that the one log begins with the other (§2.1.4.2)."""
    if old == new or old == 0:
        return not path and old <= new and (old_root == new_root if old == new else old_root == EMPTY_ROOT)
    if not 0 < old < new or not path:
        return False
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    ours = theirs = steps[0]
    for hashed in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            ours, theirs = node_hash(hashed, ours), node_hash(hashed, theirs)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            theirs = node_hash(theirs, hashed)
        at, last = at >> 1, last >> 1
    return last == 0 and ours == old_root and theirs == new_root


def _split(count: int) -> int:
    """How many of so many leaves stand on the left: the greatest power of two that is less."""
    return 1 << (count - 1).bit_length() - 1


def _subtree(begin: int, end: int, tiles: Tiles) -> bytes:
    """The hash over these events; `begin` is what RFC 6962's splits come to."""
    count = end - begin
    if count & (count - 1) == 0:
        level, within = divmod(count.bit_length() - 1, HEIGHT)
        number, at = divmod(begin >> HEIGHT * level, WIDTH)
        return _perfect(_cut(tiles(level, number), at + (1 << within))[at * HASH_BYTES :])
    middle = begin + _split(count)
    return node_hash(_subtree(begin, middle, tiles), _subtree(middle, end, tiles))


def _cut(hashes: bytes, count: int) -> bytes:
    if len(hashes) < count * HASH_BYTES:
        raise LookupError(f"a tile ends after {len(hashes)} bytes")
    return hashes[: count * HASH_BYTES]


def _peaks(hashes: bytes) -> list[bytes]:
    """Of so many hashes the roots of the perfect trees that they make, the largest first."""
    peaks, at, count = [], 0, len(hashes) // HASH_BYTES
    while count:
        size = 1 << count.bit_length() - 1
        peaks.append(_perfect(hashes[at * HASH_BYTES : (at + size) * HASH_BYTES]))
        at, count = at + size, count - size
    return peaks


def _perfect(hashes: bytes) -> bytes:
    """The root over hashes whose number is a power of two."""
    while len(hashes) > HASH_BYTES:
        pairs = (hashes[at : at + 2 * HASH_BYTES] for at in range(0, len(hashes), 2 * HASH_BYTES))
        hashes = b"".join([hashlib.sha256(b"\x01" + pair).digest() for pair in pairs])
    return hashes
