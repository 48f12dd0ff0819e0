"""Single files that were compressed, in one stream or several."""

from __future__ import annotations

import bz2
import gzip

import pytest
from container_stage import CARD, contents, events, unread

from mitmsec_addons.inflating import bzipped, gzipped
from mitmsec_addons.packed_reader import PackedReader, unpacked_name


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_every_member_is_read_and_padding_between_them_is_none(step: int) -> None:
    data = gzip.compress(CARD) + bytes(9) + gzip.compress(b" and more") + bytes(512)
    assert contents(PackedReader(gzipped, "a.txt.gz"), data, step) == {"a.txt": CARD + b" and more"}
    assert unread(PackedReader(gzipped, "a.txt.gz"), data, step) == []
    assert contents(PackedReader(bzipped, ""), bz2.compress(CARD) * 2, step) == {"content": CARD * 2}


def test_what_is_damaged_or_cut_off_says_so() -> None:
    whole = gzip.compress(CARD)
    assert unread(PackedReader(gzipped, ""), whole[:-9]) == ["cut off"]
    assert unread(PackedReader(gzipped, ""), whole + b"no gzip, and long enough") == ["damaged"]
    assert (
        b"".join(one for one in events(PackedReader(gzipped, ""), whole + b"no gzip") if isinstance(one, bytes)) == CARD
    )


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        ("a.tar.gz", "a.tar"),
        ("A.TGZ", "A.tar"),
        ("x.svgz", "x.svg"),
        (".gz", "content"),
        ("x.bin", "content"),
        ("", "content"),
    ],
)
def test_names_lose_their_ending(packed: str, unpacked: str) -> None:
    assert unpacked_name(packed) == unpacked
