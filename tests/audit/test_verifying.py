"""What the tree over a log proves, and what it honestly does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.merkle import EMPTY_ROOT, HASH_BYTES, Tile, Tiles, Tree, leaf_hash
from mitmsec.audit.verifying import BadNote, Broken, Entry, Other, Root, Verified, verify

ENVELOPES = st.lists(st.binary(max_size=8), min_size=1, max_size=12)
MANY = [b"event %d" % number for number in range(600)]


class Log:
    """What a recorder keeps: events, the tree over them, checkpoints of these sizes."""

    flawed: int | None = None

    def __init__(self, envelopes: Sequence[bytes], signed: Sequence[int] = ()) -> None:
        self.entries = [Entry(number, envelope) for number, envelope in enumerate(envelopes)]
        self.tree, tiles = Tree().grown([leaf_hash(envelope) for envelope in envelopes])
        self.tiles = {(tile.level, tile.number): tile.hashes for tile in tiles}
        self.signed = {size: self.root(size).root for size in signed}

    def root(self, size: int | None = None) -> Root:
        entries = self.entries if size is None else self.entries[:size]
        return Root(len(entries), Tree().grown([leaf_hash(entry.envelope) for entry in entries])[0].root())

    def verify(self, kept: Root | None = None) -> Verified | Broken | Other:
        notes = [Root(size, root) for size, root in sorted(self.signed.items())]
        return verify(self.entries, lambda level, number: self.tiles[level, number], notes, kept, self.flaw_of)

    def flaw_of(self, entry: Entry) -> str:
        return "flawed" if entry.seq == self.flawed else ""


@given(ENVELOPES, st.sets(st.integers(1, 12)))
def test_what_was_written_verifies_against_every_root_it_ever_had(envelopes: list[bytes], sizes: set[int]) -> None:
    signed = sorted(size for size in sizes if size <= len(envelopes))
    log = Log(envelopes, signed)
    newest = log.root(signed[-1]) if signed else None
    for size in range(len(envelopes) + 1):
        assert log.verify(log.root(size)) == Verified(log.root(), newest, len(signed))
    assert log.verify() == Verified(log.root(), newest, len(signed))


@pytest.mark.parametrize("size", [255, 256, 257, 512, 600])
def test_it_goes_on_over_the_ends_of_tiles(size: int) -> None:
    log = Log(MANY[:size], [1, 255, size])
    assert log.verify(log.root(256) if size > 256 else None) == Verified(log.root(), log.root(), len({1, 255, size}))


@given(ENVELOPES, st.data())
def test_a_changed_event_is_named(envelopes: list[bytes], data: st.DataObject) -> None:
    log = Log(envelopes)
    seq = data.draw(st.integers(0, len(envelopes) - 1))
    log.entries[seq] = Entry(seq, envelopes[seq] + b"!")
    assert log.verify() == Broken(seq, "changed: its hash is not the one in the tree over the log")


@given(ENVELOPES, st.data())
def test_a_missing_event_is_named_the_last_ones_too(envelopes: list[bytes], data: st.DataObject) -> None:
    log = Log(envelopes)
    seq = data.draw(st.integers(0, len(envelopes) - 1))
    del log.entries[seq]
    result = log.verify()
    assert isinstance(result, Broken)
    assert (result.seq, result.why.partition(":")[0]) == (seq, "missing")


def test_two_swapped_events_are_found() -> None:
    log = Log([b"a", b"b"])
    log.entries = [Entry(0, b"b"), Entry(1, b"a")]
    assert isinstance(log.verify(), Broken)
    log.entries = [Entry(1, b"b"), Entry(0, b"a")]
    assert isinstance(log.verify(), Broken)


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize("spoil", ["changed", "cut", "gone"])
def test_a_tile_that_is_not_the_tree_s_is_found(at: tuple[int, int], spoil: str) -> None:
    log = Log(MANY)
    assert set(log.tiles) == {(0, 0), (0, 1), (0, 2), (1, 0)}
    spoilt: Mapping[str, Callable[[bytes], bytes]] = {
        "changed": lambda hashes: bytes(HASH_BYTES) + hashes[HASH_BYTES:],
        "cut": lambda hashes: hashes[:-HASH_BYTES],
        "gone": lambda hashes: b"",
    }
    log.tiles[at] = spoilt[spoil](log.tiles[at])
    assert isinstance(log.verify(), Broken)


def test_a_tile_of_events_that_are_not_there_is_found() -> None:
    log = Log(MANY[:256])
    log.tiles[0, 1] = leaf_hash(b"one more")
    assert log.verify() == Broken(256, "missing: the tree over the log has more events, or others")


def test_whoever_writes_the_tree_anew_is_found_by_a_checkpoint_that_he_cannot_sign() -> None:
    signed = Log(MANY, [100, 300, 600]).signed
    forged = Log([*MANY[:200], b"another", *MANY[201:]])
    forged.signed = signed
    result = forged.verify()
    assert isinstance(result, Broken)
    assert result.seq == 100, "the checkpoint before still fits"
    assert "the checkpoint of 300 events is of others" in result.why
    forged.signed = {300: signed[300]}
    assert isinstance(result := forged.verify(), Broken)
    assert result.seq == 0
    cut = Log(MANY[:400])
    cut.signed = signed
    assert cut.verify() == Broken(400, "missing: a checkpoint tells of 600 events")


@given(ENVELOPES, st.data())
def test_a_cut_log_is_found_with_what_was_kept_and_not_without(envelopes: list[bytes], data: st.DataObject) -> None:
    kept, size = Log(envelopes).root(), data.draw(st.integers(0, len(envelopes) - 1))
    cut = Log(envelopes[:size])
    assert isinstance(cut.verify(kept), Other)
    assert isinstance(cut.verify(), Verified)


@given(ENVELOPES, st.data())
def test_a_log_written_anew_is_found_with_what_was_kept_and_not_without(
    envelopes: list[bytes], data: st.DataObject
) -> None:
    kept = Log(envelopes).root()
    seq = data.draw(st.integers(0, len(envelopes) - 1))
    forged = Log([*envelopes[:seq], envelopes[seq] + b"!", *envelopes[seq + 1 :], b"one more"])
    assert isinstance(forged.verify(kept), Other)
    assert isinstance(forged.verify(), Verified)


def test_what_was_kept_of_the_empty_log_must_be_its_root() -> None:
    assert isinstance(Log([]).verify(Root(0, b"x" * 32)), Other)
    assert isinstance(Log([b"a"]).verify(Root(0, b"x" * 32)), Other)
    assert Log([]).verify(Root(0, EMPTY_ROOT)) == Verified(Root(0, EMPTY_ROOT), None, 0)


@given(ENVELOPES, st.data())
def test_a_break_behind_what_was_kept_leaves_that_as_it_was(envelopes: list[bytes], data: st.DataObject) -> None:
    log = Log(envelopes)
    seq = data.draw(st.integers(0, len(envelopes) - 1))
    kept = log.root(data.draw(st.integers(0, len(envelopes))))
    log.flawed = seq
    assert log.verify(kept) == Broken(seq, "flawed")  # whose caller compares seq with kept.size


def test_a_checkpoint_that_is_none_is_told_where_the_ones_before_it_fit() -> None:
    log = Log(MANY[:10])
    tiles: Tiles = lambda level, number: log.tiles[level, number]  # noqa: E731
    notes = [log.root(4), BadNote("the checkpoint of 7 events is none")]
    assert verify(log.entries, tiles, notes) == Broken(4, "the checkpoint of 7 events is none")
    assert verify(log.entries, tiles, notes[1:]) == Broken(0, "the checkpoint of 7 events is none")
    assert verify([], tiles, notes[1:]) == Broken(0, "the checkpoint of 7 events is none")


def test_two_checkpoints_of_one_size_are_one_too_many() -> None:
    log = Log(MANY[:10])
    tiles: Tiles = lambda level, number: log.tiles[level, number]  # noqa: E731
    assert verify(log.entries, tiles, [log.root(4), log.root(4)]) == Verified(log.root(), log.root(4), 2)
    assert isinstance(verify(log.entries, tiles, [log.root(4), Root(4, bytes(32))]), Broken)
    assert isinstance(verify(log.entries, tiles, [log.root(4), log.root(2)]), Broken)


@given(st.integers(0, 2**40), st.binary(min_size=32, max_size=32))
def test_a_root_is_read_as_it_is_written(size: int, digest: bytes) -> None:
    assert Root.parse(str(Root(size, digest))) == Root(size, digest)


@pytest.mark.parametrize("text", ["", "5", "5:", "5:zz", "-1:" + "0" * 64, "٣:" + "0" * 64, "5:" + "0" * 62])
def test_what_is_no_root_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Root.parse(text)


def test_a_tile_is_told_by_level_and_number() -> None:
    assert Tile(0, 0, leaf_hash(b"a")) == Tree().grown([leaf_hash(b"a")])[1][0]
