"""The language of plays: what a test leaves unsaid fails it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playbook import Playbook


def two(event: str, now_s: float) -> list[str]:
    return [event, f"at {now_s}"]


def play() -> Playbook:
    made = Playbook(two, 1.0)
    Playbook.plays.remove(made)
    return made


def test_what_follows_is_said_in_order_and_time_passes_when_told_to() -> None:
    assert play() >> "a" << "a" << str >> "b" << "b" << "at 1.0"
    assert play().later(2) >> "a" << "a" << "at 3.0"


ASKED: list[Callable[[Playbook], object]] = [
    lambda left: left >> "b",
    bool,
    Playbook.done,
    lambda _: Playbook.all_done(),
]


@pytest.mark.parametrize("ask", ASKED, ids=["next event", "truth", "done", "end of the test"])
def test_what_is_left_over_fails_at_the_next_event_or_at_the_end(ask: Callable[[Playbook], object]) -> None:
    left = Playbook(two) >> "a" << "a"
    with pytest.raises(AssertionError, match="also led to"):
        ask(left)
    Playbook.plays.clear()


@pytest.mark.parametrize("wrong", ["b", int])
def test_something_else_than_was_said_fails_at_once(wrong: object) -> None:
    with pytest.raises(AssertionError, match="instead of"):
        play() >> "a" << wrong
    with pytest.raises(AssertionError, match="should also lead to"):
        play() >> "a" << "a" << "at 1.0" << wrong
