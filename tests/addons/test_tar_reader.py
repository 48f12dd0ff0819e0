"""tar archives of all dialects, read as they go by."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from container_stage import CARD, contents, events, tarred, unread
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.containers import Entry, Mark
from mitmsec_addons.tar_reader import TarReader

LONG = "folder/" * 25 + "long.txt"


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("step", [1, 511, 1 << 16])
def test_all_files_come_out_with_their_names_however_it_is_cut(kind: int, step: int) -> None:
    files = {"a.txt": CARD, LONG: bytes(2000), "empty": b"", "ü": b"x"}
    assert contents(TarReader(), tarred(files, kind), step) == files
    assert unread(TarReader(), tarred(files, kind), step) == []


def test_the_machines_own_tar_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CARD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("a")
    made = subprocess.run(["tar", "-C", tmp_path, "-c", "a", "folder", "link"], capture_output=True, check=True).stdout
    assert events(TarReader(), made) == [Entry("a"), CARD, Mark.ENDED]


def test_names_are_told_raw_and_used_for_nothing() -> None:
    assert [*contents(TarReader(), tarred({"../../etc/x": b"1", "/abs": b"2"}))] == ["../../etc/x", "/abs"]


def test_sparse_and_damaged_and_cut_ones_say_so() -> None:
    archive = tarred({"a": CARD})
    sparse = tarfile.TarInfo("s")
    sparse.type = tarfile.GNUTYPE_SPARSE
    assert unread(TarReader(), sparse.tobuf()) == ["an entry of the kind b'S', which is not known here"]
    assert unread(TarReader(), archive[:600] + b"no header " * 99) == ["damaged: a header is none"]
    assert unread(TarReader(), archive[:530]) == ["the archive is cut off"]


def test_long_names_in_two_fields_are_put_together() -> None:
    assert contents(TarReader(), tarred({LONG: b"x"}, tarfile.USTAR_FORMAT)) == {LONG: b"x"}


def test_sizes_in_base_256_are_read() -> None:
    block = bytearray(tarred({"a": b"x"})[:512])
    block[124:136] = b"\x80" + (3).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    assert contents(TarReader(), bytes(block) + b"abc") == {"a": b"abc"}


@given(
    st.lists(st.sampled_from([tarred({"a": CARD})[:512], bytes(512), b"path=x", b"9 path=\n", bytes(77)]), max_size=6),
    st.integers(1, 700),
)
def test_hostile_bytes_are_read_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert events(TarReader(), data, step) == events(TarReader(), data, len(data) + 1)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize("step", [1, 1 << 16])
def test_the_size_that_a_pax_record_says_is_the_files(step: int) -> None:
    short = bytearray(tarred({"a": CARD})[:1024])
    short[124:136] = b"%011o\0" % 3
    short[148:156] = b"%06o\0 " % (sum(short[:148]) + 8 * 32 + sum(short[156:512]))
    said = pax(b"11 size=%d\n" % len(CARD))
    with tarfile.open(fileobj=io.BytesIO(said + bytes(short))) as archive:
        assert archive.getmember("a").size == len(CARD)
    assert contents(TarReader(), said + bytes(short), step) == {"a": CARD}
    why = "a size that is not its files' own"
    assert unread(TarReader(), pax(b"11 size=9x\n") + tarred({"a": CARD}), step) == [why]
    assert unread(TarReader(), pax(b"10 size=9\n", tarfile.XGLTYPE) + tarred({"a": CARD}), step) == [why]
    assert unread(TarReader(), pax(b"13 comment=x\n", tarfile.XGLTYPE) + tarred({"a": CARD}), step) == []


def test_hostile_pax_records_take_no_time() -> None:
    archive = (pax(b"2 " * 32_000) + tarred({"a": b""})[:512]) * 10
    began_s = time.process_time()
    assert "a" in contents(TarReader(), archive, 1 << 16)
    assert time.process_time() - began_s < 0.5


def test_more_records_than_are_kept_are_told() -> None:
    """A size may stand behind what is not looked at."""
    long = pax(b"65600 comment=" + b"x" * 65_585 + b"\n" + b"11 size=99\n") + tarred({"a": CARD})
    assert unread(TarReader(), long) == ["more than 65536 bytes of what is said of a file"]


@given(st.binary(max_size=400))
def test_pax_records_may_be_anything(records: bytes) -> None:
    made = io.BytesIO()
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    made.write(info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + tarred({"a": b"x"}))
    assert list(contents(TarReader(), made.getvalue()).values()) in ([b"x"], [])
