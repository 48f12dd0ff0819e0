"""The tree is RFC 6962's at every size, and its proofs prove what they should and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.merkle import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_BYTES,
    Tile,
    Tree,
    consistency,
    inclusion,
    is_consistent,
    leaf_hash,
    node_hash,
    root_from,
    tree_of,
)

SIZES = (0, 1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 1000, 65_535, 65_536, 65_537)
LEAVES = [leaf_hash(b"event %d" % number) for number in range(max(SIZES))]
size = st.integers(1, 1500) | st.sampled_from([one for one in SIZES if one])


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """As RFC 6962 §2.1 defines it."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return node_hash(naive_root(leaves[:middle]), naive_root(leaves[middle:]))


class Kept:
    """A tree that grows, and all its tiles."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.tiles: dict[tuple[int, int], bytes] = {}

    def grow(self, leaves: Sequence[bytes]) -> list[Tile]:
        self.tree, tiles = self.tree.grown(leaves)
        self.tiles.update({(tile.level, tile.number): tile.hashes for tile in tiles})
        return tiles

    def tile(self, level: int, number: int) -> bytes:
        return self.tiles[level, number]


@pytest.fixture(scope="module")
def kept() -> Kept:
    made = Kept()
    made.grow(LEAVES)
    return made


@pytest.mark.parametrize("count", SIZES)
def test_the_root_is_that_of_the_definition(count: int, kept: Kept) -> None:
    tree, _ = Tree().grown(LEAVES[:count])
    assert tree.root() == naive_root(LEAVES[:count])
    assert tree_of(count, kept.tile) == tree


def test_the_known_roots() -> None:
    """Of RFC 6962's own examples, as its implementations publish them: eight entries, hexadecimal."""
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    leaves = [leaf_hash(bytes.fromhex(entry)) for entry in entries]
    assert [Tree().grown(leaves[: n + 1])[0].root().hex() for n in range(8)] == roots


@given(st.lists(st.integers(0, 700), max_size=6))
def test_however_it_grows_it_is_the_same_tree(steps: list[int]) -> None:
    grown, whole = Kept(), Kept()
    at = 0
    for step in steps:
        before = dict(grown.tiles)
        changed = grown.grow(LEAVES[at : at + step])
        at += step
        assert all(
            before.get((tile.level, tile.number), b"") == tile.hashes[: len(before.get((tile.level, tile.number), b""))]
            for tile in changed
        )
        assert not [key for key, hashes in before.items() if len(hashes) == TILE_BYTES and grown.tiles[key] != hashes]
    whole.grow(LEAVES[:at])
    assert (grown.tree, grown.tiles) == (whole.tree, whole.tiles)


@given(size, st.data())
def test_an_event_is_shown_to_be_among_the_others_and_no_other_is(kept: Kept, count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, count - 1))
    path, root = inclusion(number, count, kept.tile), naive_root(LEAVES[:count])
    assert root_from(LEAVES[number], number, count, path) == root
    assert root_from(leaf_hash(b"another"), number, count, path) != root
    elsewhere = data.draw(st.integers(0, count + 1))
    assert (root_from(LEAVES[number], elsewhere, count, path) == root) == (elsewhere == number)
    if path:
        spoilt = data.draw(st.integers(0, len(path) - 1))
        assert (
            root_from(LEAVES[number], number, count, [*path[:spoilt], b"\0" * HASH_BYTES, *path[spoilt + 1 :]]) != root
        )
        assert root_from(LEAVES[number], number, count, path[:-1]) is None
    assert root_from(LEAVES[number], number, count, [*path, root]) is None


@given(size, size, st.data())
def test_a_log_is_shown_to_begin_with_another_and_with_no_other(
    kept: Kept, a: int, b: int, data: st.DataObject
) -> None:
    old, new = min(a, b), max(a, b)
    path, roots = consistency(old, new, kept.tile), [naive_root(LEAVES[:count]) for count in (old, new)]
    assert is_consistent(old, roots[0], new, roots[1], path)
    other = naive_root([*LEAVES[: old - 1], leaf_hash(b"another")])
    assert not is_consistent(old, other, new, roots[1], path)
    assert not is_consistent(old, roots[0], new, other if old != new else leaf_hash(b"another"), path)
    assert not is_consistent(old, roots[0], new, roots[1], [*path, roots[0]])
    if path:
        spoilt = data.draw(st.integers(0, len(path) - 1))
        assert not is_consistent(
            old, roots[0], new, roots[1], [*path[:spoilt], b"\0" * HASH_BYTES, *path[spoilt + 1 :]]
        )
        assert not is_consistent(old, roots[0], new, roots[1], path[:-1])


def test_the_empty_log_begins_every_log() -> None:
    assert is_consistent(0, EMPTY_ROOT, 5, naive_root(LEAVES[:5]), [])
    assert not is_consistent(0, LEAVES[0], 5, naive_root(LEAVES[:5]), [])
    assert not is_consistent(0, EMPTY_ROOT, 5, naive_root(LEAVES[:5]), [LEAVES[0]])
    assert not is_consistent(6, naive_root(LEAVES[:6]), 5, naive_root(LEAVES[:5]), [])
    assert root_from(LEAVES[0], 0, 0, []) is None


def test_tiles_that_are_not_there_prove_nothing(kept: Kept) -> None:
    def short(level: int, number: int) -> bytes:
        return kept.tile(level, number)[: 3 * HASH_BYTES]

    with pytest.raises(LookupError):
        inclusion(200, 256, short)
    with pytest.raises(LookupError):
        tree_of(200, short)
    with pytest.raises(LookupError):
        consistency(5, 1 << 30, kept.tile)
