"""A gate that stands still is told from a machine that did."""

from __future__ import annotations

from mitmsec.service.pulse import HANGS_S, Pulse

LOOK_S = 0.1


def test_a_gate_that_beats_does_not_hang() -> None:
    pulse = Pulse()
    assert not any(pulse.hangs(look // 2, look * LOOK_S) for look in range(1000))


def test_a_gate_that_beats_no_more_hangs_after_a_while() -> None:
    pulse = Pulse()
    found = [look for look in range(1000) if pulse.hangs(1, look * LOOK_S)]
    assert found[0] * LOOK_S > HANGS_S > (found[0] - 2) * LOOK_S


def test_what_the_supervisor_slept_through_does_not_count() -> None:
    pulse = Pulse()
    assert not pulse.hangs(1, 0.0)
    assert not pulse.hangs(1, 3600.0)
    assert not pulse.hangs(2, 3600.1)
    assert not any(pulse.hangs(3, 3600.1 + hour * 3600) for hour in range(10))


def test_one_late_beat_is_a_sign_of_life() -> None:
    pulse = Pulse()
    assert not any(pulse.hangs(1, look * LOOK_S) for look in range(45))
    assert not any(pulse.hangs(2, look * LOOK_S) for look in range(45, 90))
