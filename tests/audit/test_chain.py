"""The hash chain: what it proves, and what it honestly does not."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.chain import EMPTY, Broken, Entry, Head, Other, Verified, verify

ENVELOPES = st.lists(st.binary(max_size=40), min_size=1, max_size=12)


def chained(envelopes: list[bytes]) -> list[Entry]:
    head, entries = EMPTY, []
    for envelope in envelopes:
        head = head.after(envelope)
        entries.append(Entry(head.size - 1, envelope, head.hash))
    return entries


def head_of(entries: list[Entry]) -> Head:
    return Head(len(entries), entries[-1].head) if entries else EMPTY


def test_the_head_is_what_the_documentation_says() -> None:
    empty = hashlib.sha256(b"").digest()
    leaf = hashlib.sha256(b"\x00event").digest()
    assert Head(0, empty) == EMPTY
    assert EMPTY.after(b"event") == Head(1, hashlib.sha256(b"\x01" + empty + leaf).digest())


@given(ENVELOPES)
def test_what_was_chained_verifies_against_every_head_it_ever_had(envelopes: list[bytes]) -> None:
    entries = chained(envelopes)
    for size in range(len(entries) + 1):
        assert verify(entries, head_of(entries[:size])) == Verified(head_of(entries))
    assert verify(entries) == Verified(head_of(entries))


@given(ENVELOPES, st.data())
def test_a_changed_event_is_named(envelopes: list[bytes], data: st.DataObject) -> None:
    entries = chained(envelopes)
    seq = data.draw(st.integers(0, len(entries) - 1))
    other = data.draw(st.binary(max_size=40).filter(lambda value: value != envelopes[seq]))
    entries[seq] = Entry(seq, other, entries[seq].head)
    result = verify(entries)
    assert isinstance(result, Broken)
    assert result.seq == seq


@given(ENVELOPES.filter(lambda envelopes: len(envelopes) > 1), st.data())
def test_an_event_deleted_before_the_last_one_is_named(envelopes: list[bytes], data: st.DataObject) -> None:
    entries = chained(envelopes)
    seq = data.draw(st.integers(0, len(entries) - 2))
    del entries[seq]
    result = verify(entries)
    assert isinstance(result, Broken)
    assert result.seq == seq
    assert "missing" in result.why


def test_two_swapped_events_are_found() -> None:
    first, second = chained([b"a", b"b"])
    assert verify([Entry(0, b"b", second.head), Entry(1, b"a", first.head)]) == Broken(
        0, "changed: its hash does not follow from the events before it"
    )
    assert isinstance(verify([second, first]), Broken)


@given(ENVELOPES, st.data())
def test_a_cut_log_is_found_with_a_kept_head_and_not_without(envelopes: list[bytes], data: st.DataObject) -> None:
    entries = chained(envelopes)
    size = data.draw(st.integers(0, len(entries) - 1))
    assert isinstance(verify(entries[:size], head_of(entries)), Other)
    assert verify(entries[:size]) == Verified(head_of(entries[:size]))


@given(ENVELOPES, st.data())
def test_a_log_written_anew_is_found_with_a_kept_head_and_not_without(
    envelopes: list[bytes], data: st.DataObject
) -> None:
    kept = head_of(chained(envelopes))
    seq = data.draw(st.integers(0, len(envelopes) - 1))
    forged = [*envelopes[:seq], envelopes[seq] + b"!", *envelopes[seq + 1 :], b"one more"]
    assert isinstance(verify(chained(forged), kept), Other)
    assert isinstance(verify(chained(forged)), Verified)


def test_a_kept_head_of_the_empty_log_must_be_the_empty_head() -> None:
    assert isinstance(verify([], Head(0, b"x" * 32)), Other)
    assert isinstance(verify(chained([b"a"]), Head(0, b"x" * 32)), Other)
    assert verify([], EMPTY) == Verified(EMPTY)


@given(ENVELOPES, st.data())
def test_a_break_behind_the_kept_head_leaves_what_the_head_stands_for(
    envelopes: list[bytes], data: st.DataObject
) -> None:
    entries = chained(envelopes)
    seq = data.draw(st.integers(0, len(entries) - 1))
    kept = head_of(entries[: data.draw(st.integers(0, len(entries)))])
    entries[seq] = Entry(seq, entries[seq].envelope, entries[seq].head, "flawed")
    result = verify(entries, kept)
    assert result == Broken(seq, "flawed")  # whose caller compares seq with kept.size


def test_a_flaw_of_the_row_itself_breaks_the_log() -> None:
    (entry,) = chained([b"a"])
    assert verify([Entry(0, b"a", entry.head, "a search column differs")]) == Broken(0, "a search column differs")


@given(st.integers(0, 2**40), st.binary(min_size=32, max_size=32))
def test_a_head_is_read_as_it_is_written(size: int, digest: bytes) -> None:
    assert Head.parse(str(Head(size, digest))) == Head(size, digest)


@pytest.mark.parametrize("text", ["", "5", "5:", "5:zz", "-1:" + "0" * 64, "٣:" + "0" * 64, "5:" + "0" * 62])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Head.parse(text)
