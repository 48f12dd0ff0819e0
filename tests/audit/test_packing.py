"""Envelopes as frames: smaller, alone readable, and never larger than an event when unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from audit_events import connection, draft, finding, request
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.envelope import ENVELOPE_LIMIT_BYTES, sealed
from mitmsec.audit.packing import DICTIONARY, FRAME_LIMIT_BYTES, Packing, Unpackable

PACKING = Packing()


def test_events_take_a_third_of_their_room_or_less() -> None:
    for seen in (connection(), request(), finding()):
        envelope = sealed(draft(seen), 12_345)[1]
        assert len(PACKING.packed(envelope)) < len(envelope) / 3


@given(st.binary(min_size=1, max_size=2000))
def test_whatever_is_packed_is_unpacked_again(content: bytes) -> None:
    assert PACKING.unpacked(PACKING.packed(content)) == content


@given(st.binary(max_size=200), st.integers(0, 400))
def test_what_is_no_frame_is_told(junk: bytes, at: int) -> None:
    frame = bytearray(PACKING.packed(sealed(draft(connection()), 1)[1]))
    frame[at % len(frame)] ^= 0xFF
    for hostile in (junk, bytes(frame), bytes(frame) + junk):
        with contextlib.suppress(Unpackable):
            assert len(PACKING.unpacked(hostile)) <= ENVELOPE_LIMIT_BYTES


@pytest.mark.parametrize("thing", [None, "text", 5, b"", b"x" * (FRAME_LIMIT_BYTES + 1)])
def test_other_things_are_no_frames(thing: object) -> None:
    with pytest.raises(Unpackable):
        PACKING.unpacked(thing)


def test_a_frame_of_more_than_an_event_is_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    assert len(bomb) < FRAME_LIMIT_BYTES
    with pytest.raises(Unpackable, match="larger than an event"):
        PACKING.unpacked(bomb)
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(b"some")
    with pytest.raises(Unpackable, match="does not say"):
        PACKING.unpacked(unsaid)


def test_what_follows_a_frame_is_not_overlooked() -> None:
    frame = PACKING.packed(b"an event")
    with pytest.raises(Unpackable):
        PACKING.unpacked(frame + frame)


def test_the_dictionary_of_logs_that_exist_is_the_one_that_they_were_written_with() -> None:
    """Another one makes every log unreadable that was written before: give it another name, and keep this."""
    assert hashlib.sha256(DICTIONARY.read_bytes()).hexdigest() == (
        "370c37b42f62be3b52f4e0adf6e0f77c6e04be6cb309242b6147573db62d6b4f"
    )


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is missing (Debian package zstd)")
def test_a_third_partys_program_reads_a_frame(tmp_path: Path) -> None:
    envelope = sealed(draft(connection()), 7)[1]
    (tmp_path / "frame").write_bytes(PACKING.packed(envelope))
    done = subprocess.run(
        ["zstd", "-d", "-c", "-D", DICTIONARY, tmp_path / "frame"], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == envelope
