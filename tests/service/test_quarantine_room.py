"""How much may lie under quarantine: of all, and of those who have little there."""

from __future__ import annotations

from mitmsec.service.quarantine_room import LEAST_BYTES, LIMIT_BYTES, Room


def test_one_session_cannot_take_the_last_quarter_from_the_others() -> None:
    room = Room(limit_bytes=160, least_bytes=1)
    assert room.take("a-1", "a", 120)
    assert not room.take("a-2", "a", 1)
    assert room.take("b-1", "b", 10)  # a sixteenth
    assert not room.take("b-2", "b", 1)
    assert not room.take("b-1", "b", 11)
    for session in ("c", "d", "e"):
        assert room.take(f"{session}-1", session, 10)
    assert room.used_bytes == 160
    assert not room.take("f-1", "f", 1)


def test_what_grows_is_counted_once_and_what_goes_not_any_more() -> None:
    room = Room(limit_bytes=160, least_bytes=1)
    for size_bytes in (0, 50, 100):
        assert room.take("a-1", "a", size_bytes)
    assert room.used_bytes == 100
    assert "a-1" in room
    room.free("a-1")
    room.free("a-1")
    assert (room.used_bytes, "a-1" in room) == (0, False)
    assert room.take("a-2", "a", 120)
    room.found("x-1", 30)
    room.keep({"x-1"})
    assert (room.used_bytes, "a-2" in room, "x-1" in room) == (30, False, True)
    assert room.take("a-3", "a", 90)  # it is a's no longer


def test_the_emptiest_item_takes_room_too() -> None:
    room = Room(limit_bytes=160, least_bytes=10)
    assert [room.take(f"a-{number}", "a", 0) for number in range(13)] == [True] * 12 + [False]
    assert LIMIT_BYTES // LEAST_BYTES == 16_384
