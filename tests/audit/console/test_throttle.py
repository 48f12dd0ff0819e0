"""Guessing gets slower, and is forgotten."""

from __future__ import annotations

from mitmsec.audit.console.throttle import FIRST_WAIT_S, FORGOTTEN_S, FREE_TRIES, KEYS_LIMIT, WAIT_LIMIT_S, Throttle


def test_after_some_failures_each_further_try_waits_twice_as_long() -> None:
    throttle = Throttle()
    for _ in range(FREE_TRIES):
        assert throttle.waits_s("name rosa", 100.0) == 0
        throttle.failed("name rosa", 100.0)
    assert throttle.waits_s("name rosa", 100.0) == FIRST_WAIT_S
    assert throttle.waits_s("name rosa", 110.0) == FIRST_WAIT_S - 10
    throttle.failed("name rosa", 200.0)
    assert throttle.waits_s("name rosa", 200.0) == 2 * FIRST_WAIT_S
    for _ in range(100):
        throttle.failed("name rosa", 300.0)
    assert throttle.waits_s("name rosa", 300.0) == WAIT_LIMIT_S
    assert throttle.waits_s("name rita", 300.0) == 0


def test_a_success_or_an_hour_forgets_the_failures() -> None:
    throttle = Throttle()
    for _ in range(FREE_TRIES):
        throttle.failed("a", 0.0)
    assert throttle.waits_s("a", FORGOTTEN_S + 1) == 0
    throttle.failed("a", FORGOTTEN_S + 1)
    assert throttle.waits_s("a", FORGOTTEN_S + 1) == 0
    for _ in range(FREE_TRIES):
        throttle.failed("a", FORGOTTEN_S + 1)
    throttle.succeeded("a")
    throttle.succeeded("never seen")
    assert throttle.waits_s("a", FORGOTTEN_S + 1) == 0


def test_the_keys_of_an_attacker_take_no_more_than_so_much() -> None:
    throttle = Throttle()
    for _ in range(FREE_TRIES):
        throttle.failed("first", 0.0)
    for number in range(KEYS_LIMIT):
        throttle.failed(f"key {number}", 0.0)
    assert throttle.waits_s("first", 0.0) == 0
