"""What the recorder writes of sealed content: whole or not there, bounded, and never silently gone."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mitmsec.audit.event import SealedSeen
from mitmsec.audit.intake import Source
from mitmsec.core.messages import Role
from mitmsec.core.quarantine import ITEM_LIMIT_BYTES
from mitmsec.service.quarantine_folder import FULL, ITEMS_BURST, LOOK_AGAIN_S, OPEN_LIMIT, PART, QuarantineFolder
from mitmsec.service.quarantine_room import Room

WORKER, OTHER = Source(Role.WORKER, "s", 0), Source(Role.WORKER, "s", 1)
ITEM = "flow1-0123abcd"


def piece(at: int, data: bytes, *, is_last: bool = False, item: str = ITEM, flow: str = "flow1") -> SealedSeen:
    return SealedSeen(flow=flow, item=item, at=at, data=data, is_last=is_last, is_whole=True)


class House:
    """A folder, and what was told of it."""

    def __init__(self, folder: Path, room: Room | None = None) -> None:
        self.now_s = 1000.0
        self.path = folder
        self.kept: list[tuple[str, int, str]] = []
        self.failed: list[tuple[Source | None, str, str]] = []
        self.syncing: list[Callable[[], None]] | None = None  # a disk that takes its time has them wait
        self.folder = QuarantineFolder(
            folder,
            self.on_disk,
            lambda _, seen, size_bytes, sha256: self.kept.append((seen.item, size_bytes, sha256)),
            lambda *words: self.failed.append(words),
            room,
        )

    def on_disk(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        def now() -> None:
            try:
                work()
            except OSError as error:
                return done(error)
            done(None)

        now() if self.syncing is None else self.syncing.append(now)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())

    def take(self, *pieces: SealedSeen, source: Source = WORKER) -> None:
        for one in pieces:
            self.folder.piece(source, one, self.now_s)


def test_pieces_become_a_file_that_is_its_owners_alone(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.take(piece(0, b"one "))
    assert house.names == [f"{ITEM}.part"]
    house.take(piece(4, b"two", is_last=True))
    assert house.kept == [(ITEM, 7, hashlib.sha256(b"one two").hexdigest())]
    assert (house.names, (tmp_path / ITEM).read_bytes()) == ([ITEM], b"one two")
    assert (tmp_path / ITEM).stat().st_mode & 0o777 == 0o600
    house.folder.ended(WORKER)
    assert (house.names, house.failed) == ([ITEM], [])


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([piece(0, b"one"), piece(5, b"two", is_last=True)], "some of it has been lost on its way"),
        ([piece(5, b"two"), piece(8, b"", is_last=True)], "its beginning has not come"),
        ([piece(0, b"x", item="../flow1-0123abcd")], "a name that is none"),
        ([piece(0, b"x", item="flow2-0123abcd")], "a name that is none"),
        ([piece(0, b"x", item=f"{ITEM}.part")], "a name that is none"),
        ([piece(0, b"x" * (ITEM_LIMIT_BYTES + 1))], "there is no more room for it"),
    ],
)
def test_what_does_not_come_as_it_should_is_told_once_and_leaves_nothing(
    tmp_path: Path, pieces: list[SealedSeen], why: str
) -> None:
    house = House(tmp_path)
    house.take(*pieces)
    house.folder.ended(WORKER)
    ((source, flow, told),) = house.failed
    assert (source, flow) == (WORKER, "flow1")
    assert why in told
    assert (house.names, house.kept) == ([], [])


def test_a_worker_that_ends_takes_its_own_halves_with_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.take(piece(0, b"x"))
    house.take(piece(0, b"x", item="flow1-00000000"), source=OTHER)
    house.folder.ended(WORKER)
    assert house.failed == [(WORKER, "flow1", f"{ITEM}: its worker ended before all of it had come")]
    assert house.names == ["flow1-00000000.part"]


def test_what_was_announced_and_never_came_is_told(tmp_path: Path) -> None:
    house = House(tmp_path)
    for item in (ITEM, "flow1-00000000", "flow1-00000001"):
        house.folder.expect(WORKER, "flow1", item)
    house.take(piece(0, b"x", is_last=True), piece(0, b"y", item="flow1-00000000"))
    house.folder.ended(OTHER)
    assert house.failed == []
    house.folder.ended(WORKER)
    house.folder.ended(WORKER)
    assert [told for _, _, told in house.failed] == [
        "flow1-00000000: its worker ended before all of it had come",
        "flow1-00000001: its worker ended before any of it had come",
    ]


def test_what_a_recorder_that_died_has_left_is_removed_and_told(tmp_path: Path) -> None:
    House(tmp_path).take(piece(0, b"x"))
    (tmp_path / "flow1-00000000").write_bytes(b"whole")
    house = House(tmp_path)
    assert house.failed == [(None, "flow1", f"{ITEM}: the recorder ended before all of it had come")]
    assert house.names == ["flow1-00000000"]


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    """A worker that is taken over by what it has just put there cannot destroy it."""
    house = House(tmp_path)
    house.take(piece(0, b"EVIDENCE", is_last=True))
    house.take(piece(0, b"junk", is_last=True))
    assert (house.names, (tmp_path / ITEM).read_bytes()) == ([ITEM], b"EVIDENCE")
    assert [item for item, _, _ in house.kept] == [ITEM]
    assert house.failed == [(WORKER, "flow1", f"{ITEM}: one of that name is there already")]
    (tmp_path / "flow1-00000000").write_bytes(b"what nobody told")
    house.take(piece(0, b"junk", item="flow1-00000000", is_last=True))
    assert house.failed[1:] == [(WORKER, "flow1", "flow1-00000000: one of that name is there already")]
    assert (house.names, (tmp_path / "flow1-00000000").read_bytes()) == (["flow1-00000000", ITEM], b"what nobody told")
    (tmp_path / f"{ITEM}{PART}").hardlink_to(tmp_path / ITEM)  # a recorder that was killed between its two names
    again = House(tmp_path)
    assert (again.names, again.failed) == (["flow1-00000000", ITEM], [])


def test_what_may_not_last_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    sync = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    house.take(piece(0, b"x", is_last=True))
    assert (house.names, house.kept) == ([], [])
    assert house.failed == [(WORKER, "flow1", f"{ITEM}: Input/output error")]


def test_what_comes_counts_as_what_is_there_and_what_is_removed_does_not_any_more(tmp_path: Path) -> None:
    house = House(tmp_path, Room(limit_bytes=160, least_bytes=1))
    first, second, third = (f"flow1-{number:08x}" for number in range(3))
    house.take(piece(0, b"x" * 60, item=first), piece(0, b"x" * 60, item=second))
    house.take(piece(0, b"x", item=third, is_last=True))
    assert house.failed.pop()[2] == f"{third}: {FULL}"
    house.take(piece(60, b"", item=first, is_last=True), piece(60, b"x", item=second))
    assert house.failed.pop()[2] == f"{second}: {FULL}"
    assert house.names == [first]
    house.take(piece(0, b"x" * 60, item=third, is_last=True))
    (tmp_path / first).unlink()  # by whoever may
    house.take(piece(0, b"x" * 60, item="flow1-000000ff"))
    assert house.failed.pop()[2] == f"flow1-000000ff: {FULL}", "the folder was looked through just now"
    house.now_s += LOOK_AGAIN_S
    house.take(piece(0, b"x" * 50, item="flow1-000000fe"))
    assert house.failed == []
    again = Room(limit_bytes=160, least_bytes=1)
    assert House(tmp_path, again).names == [third]
    assert again.used_bytes == 60


def test_how_many_one_worker_begins_in_a_second_is_bounded_however_small_they_are(tmp_path: Path) -> None:
    house, count = House(tmp_path), int(ITEMS_BURST)
    for number in range(count + 1):
        house.take(piece(0, b"", item=f"flow1-{number:08x}"), piece(0, b"", item=f"flow1-{number:08x}", is_last=True))
    assert len(house.kept) == count
    assert house.failed == [
        (WORKER, "flow1", f"flow1-{count:08x}: more than its worker may put there in so short a time")
    ]
    house.take(piece(0, b"", is_last=True), source=OTHER)
    house.now_s += 1.0
    for number in range(3):
        house.take(piece(0, b"", item=f"flow1-000001{number:02x}", is_last=True))
    assert (len(house.kept), len(house.failed)) == (count + 3, 2)


def test_what_is_on_its_way_to_the_disk_is_waited_for_and_nobody_waits_with_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.syncing = []
    house.take(piece(0, b"one", is_last=True))
    assert (house.names, house.kept, house.folder.holds("s")) == ([f"{ITEM}.part"], [], True)
    house.take(piece(0, b"two", is_last=True), source=OTHER)
    assert house.failed.pop() == (OTHER, "flow1", f"{ITEM}: one of that name is there already")
    house.folder.ended(WORKER)
    (sync,) = house.syncing
    sync()
    assert (house.names, house.folder.holds("s"), house.failed) == ([ITEM], False, [])
    assert [item for item, _, _ in house.kept] == [ITEM]
    for number in range(OPEN_LIMIT + 1):
        house.now_s += 1.0
        house.take(piece(0, b"", item=f"flow1-{number:08x}", is_last=True))
    assert [told for _, _, told in house.failed] == [f"flow1-{OPEN_LIMIT:08x}: too many at once"]


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    house.take(piece(0, b"x"), piece(1, b"y", is_last=True))
    assert house.failed == [(WORKER, "flow1", f"{ITEM}: No space left on device")]
    (tmp_path / f"{ITEM}.part").touch()  # somebody else's, in its place
    house.take(piece(0, b"x"))
    assert house.failed[1:] == [(WORKER, "flow1", f"{ITEM}: it cannot be written")]
    assert house.kept == []
