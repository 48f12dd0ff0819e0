"""What was compressed is unfolded in bounded slices, whoever compressed it and however it is cut."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.inflating import (
    SLICE_BYTES,
    Damaged,
    Deflated,
    Stored,
    Unfolding,
    Zstandard,
    bzipped,
    gzipped,
    xzipped,
)

CONTENT = bytes(80_000) + b"the end"
MADE: list[tuple[Callable[[], Unfolding], bytes]] = [
    (Stored, CONTENT),
    (Deflated, zlib.compress(CONTENT, wbits=-15)),
    (gzipped, gzip.compress(CONTENT)),
    (bzipped, bz2.compress(CONTENT)),
    (xzipped, lzma.compress(CONTENT)),
    (xzipped, lzma.compress(CONTENT, lzma.FORMAT_ALONE)),
    (Zstandard, zstandard.compress(CONTENT)),
]


def unfolded(unfolding: Unfolding, data: bytes, step: int) -> list[bytes]:
    return [piece for at in range(0, len(data), step) for piece in unfolding.feed(data[at : at + step])]


@pytest.mark.parametrize(("begin", "data"), MADE, ids=range(len(MADE)))
@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_content_comes_out_as_it_went_in_in_slices(begin: Callable[[], Unfolding], data: bytes, step: int) -> None:
    unfolding = begin()
    pieces = unfolded(unfolding, data, step)
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) <= SLICE_BYTES
    assert unfolding.ended is (begin is not Stored)


@pytest.mark.parametrize(("begin", "data"), MADE[1:], ids=range(1, len(MADE)))
def test_what_follows_the_end_is_left(begin: Callable[[], Unfolding], data: bytes) -> None:
    unfolding = begin()
    assert b"".join(unfolding.feed(data + b"more")) == CONTENT
    assert unfolding.unused in (b"more", b"")  # lzma-alone with an end mark may keep it


@given(st.sampled_from(MADE[1:]), st.binary(min_size=1, max_size=60))
def test_hostile_bytes_are_content_or_damage(made: tuple[Callable[[], Unfolding], bytes], data: bytes) -> None:
    with contextlib.suppress(Damaged):
        assert isinstance(b"".join(made[0]().feed(data)), bytes)


def test_a_window_that_needs_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 128 << 20}]
    with pytest.raises(Damaged, match="needs more than 33554432 bytes"):
        b"".join(xzipped().feed(lzma.compress(b"x" * 99, filters=filters)))
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    packed = (
        zstandard.ZstdCompressor(compression_params=wide).compressobj().compress(random.Random(1).randbytes(1 << 20))
    )
    with pytest.raises(Damaged, match="needs more than 8388608 bytes"):
        b"".join(Zstandard().feed(packed))
