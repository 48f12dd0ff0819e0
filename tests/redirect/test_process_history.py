"""Who had a pid when, and what ran in it: from events alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect import process_history
from mitmsec_redirect.process_history import TICK_NS, Life, ProcessHistory, Program, Sighting
from mitmsec_redirect.process_records import Executable, ProcessEnded, ProcessExecuted, ProcessStarted

SHELL, CURL = Executable(1, 10, 100), Executable(1, 20, 200)


def told(pid: int, at_ns: int, started_ns: int, parent: int = 1, parent_started_ns: int = 5) -> dict[str, object]:
    return {
        "pid": pid,
        "started_ns": started_ns,
        "at_ns": at_ns,
        "parent": parent,
        "parent_started_ns": parent_started_ns,
        "uid": 1000,
        "comm": "name",
        "cgroup": 7,
        "entry": 0,
        "no_room": False,
    }


def started(
    pid: int, at_ns: int, started_ns: int, forker: int = 1, file: Executable | None = SHELL, **other: int
) -> ProcessStarted:
    return ProcessStarted(**told(pid, at_ns, started_ns, **other), forker=forker, executable=file)  # type: ignore[arg-type]


def executed(
    pid: int, at_ns: int, started_ns: int, path: str = "/bin/curl", file: Executable = CURL, **other: int
) -> ProcessExecuted:
    fields = told(pid, at_ns, started_ns, **other)
    return ProcessExecuted(**fields, thread=pid, executable=file, mount_namespace=4, path=path, name=path)  # type: ignore[arg-type]


def ended(pid: int, at_ns: int, started_ns: int) -> ProcessEnded:
    return ProcessEnded(**told(pid, at_ns, started_ns))  # type: ignore[arg-type]


def sighting(pid: int, start_ticks: int, since_ns: int, parent: int = 1, file: Executable = SHELL) -> Sighting:
    program = Program(since_ns, "name", 1000, "/bin/sh", 4, file, is_told=False)
    return Sighting(pid=pid, start_ticks=start_ticks, parent=parent, program=program)


def path_at(history: ProcessHistory, pid: int, at_ns: int) -> str | None:
    life = history.at(pid, at_ns)
    return None if life is None else life.program_at(at_ns).path


def test_a_connection_is_of_the_program_that_ran_when_it_was_made() -> None:
    history = ProcessHistory()
    history.apply(started(7, 100, 90, forker=1))
    history.apply(executed(7, 200, 90, "/bin/sh", SHELL))
    history.apply(executed(7, 300, 90, "/bin/curl"))
    history.apply(ended(7, 400, 90))
    assert [path_at(history, 7, at) for at in (99, 150, 250, 300, 400, 401)] == [
        None,
        None,
        "/bin/sh",
        "/bin/curl",
        "/bin/curl",
        None,
    ]


def test_a_fork_runs_what_its_parent_ran() -> None:
    history = ProcessHistory()
    history.apply(executed(7, 100, 90, "/bin/sh", SHELL))
    history.apply(started(8, 200, 190, forker=7))
    history.apply(executed(7, 300, 90, "/bin/curl"))
    assert path_at(history, 8, 350) == "/bin/sh"
    history.apply(started(9, 400, 390, forker=7, file=Executable(1, 99, 1)))  # its exec was not told
    assert path_at(history, 9, 450) is None
    history.apply(started(10, 400, 390, forker=7, file=None))
    assert path_at(history, 10, 450) is None


def test_a_fork_of_who_was_found_by_a_scan_is_known_even_where_stat_tells_another_device() -> None:
    history = ProcessHistory()
    history.scanned(50, 60, [sighting(7, 0, 60, file=Executable(99, 10, 100))], has_lost=False)
    history.apply(started(8, 200, 190, forker=7))
    assert path_at(history, 8, 250) == "/bin/sh"


def test_a_pid_that_comes_round_is_two_lives() -> None:
    history = ProcessHistory()
    history.apply(executed(7, 100, 90, "/bin/sh", SHELL))
    history.apply(ended(7, 200, 90))
    history.apply(started(7, 300, 290))
    history.apply(executed(7, 310, 290, "/bin/curl"))
    assert [path_at(history, 7, at) for at in (150, 250, 320)] == ["/bin/sh", None, "/bin/curl"]
    history.apply(ended(7, 400, 90))  # told twice: of the first, not of the second
    assert path_at(history, 7, 450) == "/bin/curl"


def test_an_end_that_was_lost_ends_when_the_pid_is_used_again() -> None:
    history = ProcessHistory()
    history.apply(started(7, 100, 90))
    history.apply(started(7, 300, 290))
    history.apply(executed(7, 500, 490, "/bin/curl"))
    lives = [history.at(7, at) for at in (200, 400, 600)]
    assert [life.started_ns for life in lives if life] == [90, 290, 490]


def test_what_is_told_twice_changes_nothing() -> None:
    history = ProcessHistory()
    events = [started(7, 100, 90), executed(7, 200, 90), ended(7, 300, 90)]
    for event in [*events, events[0], events[1], events[2]]:
        history.apply(event)
    life = history.at(7, 250)
    assert life is not None
    assert (len(life.programs), life.ended_ns, len(history)) == (2, 300, 1)


def test_the_end_of_who_was_never_seen_is_nothing() -> None:
    history = ProcessHistory()
    history.apply(ended(7, 100, 90))
    assert len(history) == 0


# --- scans ------------------------------------------------------------------------------------------------------------
def test_who_was_found_has_been_there_all_along_but_what_it_ran_before_is_not_certain() -> None:
    history = ProcessHistory()
    history.scanned(100, 110, [sighting(7, 3, 110)], has_lost=False)
    life = history.at(7, 50)
    assert life is not None
    assert not history.is_certain(life.program_at(50), 50)
    assert history.is_certain(life.program_at(120), 120)


def test_the_stream_replays_over_the_scan_to_the_same_end() -> None:
    """The scan saw the second program; that the first one began is told afterwards."""
    history = ProcessHistory()
    history.scanned(100, 200, [sighting(7, 0, 200)], has_lost=False)
    history.apply(executed(7, 150, 90, "/bin/first"))
    history.apply(executed(7, 160, 90, "/bin/second"))
    assert [path_at(history, 7, at) for at in (155, 170, 300)] == ["/bin/first", "/bin/second", "/bin/second"]
    history.apply(started(8, 150, 140))
    history.scanned(100, 200, [sighting(8, 0, 200)], has_lost=False)
    assert len(history) == 2


def test_who_is_not_found_has_ended_but_not_who_started_since() -> None:
    history = ProcessHistory()
    history.apply(started(7, 100, 90))
    history.apply(started(8, 300, 290))
    history.apply(started(9, 100, 90))
    history.scanned(200, 250, [sighting(9, 1, 250)], has_lost=False)  # another process of that pid
    assert history.at(7, 350) is None
    assert history.at(8, 350) is not None
    nine = history.at(9, 350)
    assert nine is not None
    assert nine.start_ticks == 1


def test_after_a_loss_nothing_that_was_known_is_certain_until_it_is_seen_again() -> None:
    history = ProcessHistory()
    history.apply(executed(7, 100, 90, "/bin/sh", SHELL))
    life = history.at(7, 150)
    assert life is not None
    assert history.is_certain(life.program_at(150), 150)
    history.scanned(200, 210, [sighting(7, 0, 210)], has_lost=True)
    assert not history.is_certain(life.program_at(150), 150)
    assert history.is_certain(life.program_at(220), 220)
    history.apply(executed(7, 300, 90))
    assert history.is_certain(life.program_at(310), 310)


# --- parents ----------------------------------------------------------------------------------------------------------
def test_ancestors_are_as_they_were_whatever_has_become_of_them() -> None:
    history = ProcessHistory()
    history.apply(executed(7, 100, 5 * TICK_NS, "/bin/first", parent=0))
    history.apply(started(8, 200, 6 * TICK_NS, parent=7, parent_started_ns=5 * TICK_NS, forker=7))
    history.apply(executed(7, 300, 5 * TICK_NS, "/bin/second"))
    history.apply(ended(7, 400, 5 * TICK_NS))
    history.apply(started(7, 500, 9 * TICK_NS))
    history.apply(started(9, 600, 10 * TICK_NS, parent=8, parent_started_ns=6 * TICK_NS))
    life = history.at(9, 700)
    assert life is not None
    assert [(parent.pid, program.path) for parent, program in history.ancestors(life)] == [
        (8, None),
        (7, "/bin/first"),
    ]


def test_the_parent_of_who_was_found_is_not_one_that_started_later() -> None:
    history = ProcessHistory()
    history.scanned(1, 2, [sighting(7, 5, 2, parent=8), sighting(8, 6, 2, parent=0)], has_lost=False)
    life = history.at(7, 3)
    assert life is not None
    assert list(history.ancestors(life)) == []
    history.scanned(1, 2, [sighting(7, 5, 2), sighting(8, 6, 2), sighting(9, 7, 2, parent=8)], has_lost=False)
    nine = history.at(9, 3)
    assert nine is not None
    assert [parent.pid for parent, _ in history.ancestors(nine)] == [8]


def test_a_chain_that_bites_its_tail_ends() -> None:
    history = ProcessHistory()
    history.apply(executed(7, 100, 90, parent=7, parent_started_ns=90))
    life = history.at(7, 100)
    assert life is not None
    assert len(list(history.ancestors(life))) == process_history.ANCESTORS_LIMIT


# --- bounds -----------------------------------------------------------------------------------------------------------
def test_ended_lives_are_bounded_by_number_and_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_history, "ENDED_LIMIT", 10)
    history = ProcessHistory()
    for pid in range(100):
        history.apply(started(pid, pid * 10, pid))
        history.apply(ended(pid, pid * 10 + 5, pid))
    assert len(history) == 10
    assert history.at(99, 993) is not None
    history.apply(started(100, process_history.KEEP_NS + 2000, 100))
    history.apply(ended(100, process_history.KEEP_NS + 2000, 100))
    assert len(history) == 1


def test_a_life_of_many_programs_keeps_the_newest_and_stays_one_life() -> None:
    history = ProcessHistory()
    for number in range(100):
        history.apply(executed(7, 100 + number, 90, f"/bin/{number}"))
    life = history.at(7, 100)
    assert life is not None
    assert len(life.programs) == process_history.PROGRAMS_LIMIT
    assert not history.is_certain(life.program_at(100), 100)
    assert path_at(history, 7, 500) == "/bin/99"


EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)), max_size=40)


@given(EVENTS, st.integers(1, 3), st.integers(0, 450))
def test_whatever_is_told_a_pid_has_one_owner_that_was_there(
    stream: list[tuple[int, int, int]], pid: int, at_ns: int
) -> None:
    """Any stream, lost and doubled events included."""
    history = ProcessHistory()
    for number, (who, start, what) in enumerate(stream):
        now, began = 10 + number * 10, start * TICK_NS
        if what == 3:
            history.scanned(now, now + 5, [sighting(who, start, now + 5)], has_lost=bool(start % 2))
        else:
            history.apply([started, executed, ended][what](who, now, began))  # type: ignore[operator]
    life = history.at(pid, at_ns)
    if life is not None:
        assert isinstance(life, Life)
        assert life.pid == pid
        assert life.programs
        assert life.since_ns <= at_ns
        assert life.ended_ns is None or at_ns <= life.ended_ns
    living = [one for lives in history._lives.values() for one in lives if one.ended_ns is None]
    assert len({one.pid for one in living}) == len(living)


def test_an_old_life_goes_and_the_new_one_of_its_pid_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_history, "ENDED_LIMIT", 1)
    history = ProcessHistory()
    for start in (100, 200):
        history.apply(started(7, start, start))
        history.apply(ended(7, start + 50, start))
    assert [history.at(7, at) is not None for at in (120, 220)] == [False, True]


def test_what_is_no_event_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        ProcessHistory().apply("rubbish")  # type: ignore[arg-type]
