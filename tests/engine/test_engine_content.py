"""Content codings, whole and in any pieces, honest and not."""

from __future__ import annotations

import contextlib
import gzip
import random
import subprocess
import sys
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.engine.content import FREE_BYTES, RATIO_LIMIT, SLICE_BYTES, Undecodable, decoder


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def packed(data: bytes) -> bytes:
    """By brotli, quickly: how well it packs is nothing to who unpacks."""
    return brotli.compress(data, quality=3)


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "members": ("gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
    "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw_deflate),
    "br": ("br", packed),
    "zstd": ("zstd", lambda data: bytes(zstandard.compress(data))),
    "frames": ("zstd", lambda data: bytes(zstandard.compress(data[:5]) + zstandard.compress(data[5:]))),
    "identity": ("identity", lambda data: data),
    "two": ("gzip, br", lambda data: packed(gzip.compress(data))),
    "none": ("", lambda data: data),
}


def undone(codings: str, data: bytes, cuts: list[int]) -> bytes:
    made = decoder(codings)
    out = b""
    at = 0
    for cut in sorted(cut % (len(data) + 1) for cut in [*cuts, len(data)]):
        out += b"".join(made.feed(data[at:cut]))
        at = cut
    return out + b"".join(made.feed(data[at:]))


@pytest.mark.parametrize("coding", CODINGS)
@given(
    data=st.binary(min_size=6, max_size=400).map(lambda some: some * 30),
    cuts=st.lists(st.integers(0, 5000), max_size=6),
)
def test_any_split_gives_the_same(coding: str, data: bytes, cuts: list[int]) -> None:
    words, make = CODINGS[coding]
    assert undone(words, make(data), cuts) == data


@pytest.mark.parametrize("coding", ["gzip", "zlib", "br", "zstd"])
def test_large_content_comes_in_slices(coding: str) -> None:
    words, make = CODINGS[coding]
    data = b"".join(b"%d\n" % number for number in range(200_000))
    pieces = list(decoder(words).feed(make(data)))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 64 * SLICE_BYTES


@pytest.mark.parametrize("coding", ["gzip", "zlib", "br", "zstd"])
def test_a_bomb_is_given_up_before_it_has_grown(coding: str) -> None:
    words, make = CODINGS[coding]
    bomb = make(bytes(24 << 20))
    grown: list[int] = []
    made = decoder(words)
    with pytest.raises(Undecodable, match="expands"):
        grown.extend(len(piece) for piece in made.feed(bomb))
    assert sum(grown) <= FREE_BYTES + 200 * len(bomb) < 24 << 20


def test_a_bomb_within_a_bomb_is_measured_by_what_travelled() -> None:
    """Each step alone stays within its ratio: 200 times 200 would not."""
    inner = gzip.compress(bytes(1 << 16) * 3 + random.Random(1).randbytes(1 << 10)) * 700
    bomb = gzip.compress(inner)
    grown: list[int] = []
    with pytest.raises(Undecodable, match="expands"):
        grown.extend(len(piece) for piece in decoder("gzip, gzip").feed(bomb))
    assert sum(grown) <= FREE_BYTES + RATIO_LIMIT * len(bomb)


@pytest.mark.parametrize("words", ["compress", "gzip, unknown", "gzip, gzip, gzip, gzip", "\x00"])
def test_a_coding_that_is_not_known(words: str) -> None:
    with pytest.raises(Undecodable):
        decoder(words)


@pytest.mark.parametrize("words", ["gzip", "deflate", "br", "zstd"])
@given(data=st.binary(min_size=1, max_size=200))
def test_broken_content_is_undecodable_and_nothing_worse(words: str, data: bytes) -> None:
    made, grown = decoder(words), 0
    with contextlib.suppress(Undecodable):
        for fed in (data, b"\xff" * 100):
            grown += sum(map(len, made.feed(fed)))
    assert grown <= FREE_BYTES + RATIO_LIMIT * (len(data) + 100)


# What comes of a bomb of 1 GiB, in a process of its own: how large that was, its peak, and the time that it took.
_STOPPED = r"""
import resource, sys, time, zlib
import brotli, zstandard
from mitmsec.engine.content import Undecodable, decoder
coding, blank = sys.argv[1], bytes(16 << 20)
if coding == "gzip":
    packer = zlib.compressobj(6, wbits=-15)
    head, block = b"\x1f\x8b\x08" + bytes(7), packer.compress(blank) + packer.flush(zlib.Z_FULL_FLUSH)
elif coding == "zstd":
    head, block = b"", zstandard.compress(blank)
else:
    packer = brotli.Compressor(quality=3)
    head, block = packer.process(blank) + packer.flush(), packer.process(blank) + packer.flush()
del blank
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
made, size, stopped = decoder(coding), 0, "to its end"
try:
    for piece in made.feed(head):
        size += len(piece)
    for _ in range(64):
        for piece in made.feed(block):
            size += len(piece)
except Undecodable as error:
    stopped = str(error)
took = time.process_time() - begun
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10, took, stopped, sep="|")
"""


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_of_one_gibibyte_is_stopped_at_once(coding: str) -> None:
    out = subprocess.run([sys.executable, "-c", _STOPPED, coding], capture_output=True, text=True, check=True).stdout
    size_bytes, grown_bytes, took_s, stopped = out.strip().split("|")
    assert stopped == f"expands more than {RATIO_LIMIT} times"
    assert int(size_bytes) < 64 << 20
    assert int(grown_bytes) < 64 << 20
    assert float(took_s) < 2
