"""Events and commands are values, and the closed lists of them are complete."""

from __future__ import annotations

from typing import get_args

import pytest

from mitmsec.gate import signals


@pytest.mark.parametrize(("base", "union"), [("Event", "AnyEvent"), ("Command", "AnyCommand")])
def test_the_list_of_kinds_is_complete(base: str, union: str) -> None:
    kinds = {kind for kind in getattr(signals, base).__subclasses__() if kind.__module__ == signals.__name__}
    assert set(get_args(getattr(signals, union).__value__)) == kinds


def test_signals_are_compared_by_content_and_cannot_be_changed() -> None:
    first = signals.FirstBytes(b"x")
    assert first == signals.FirstBytes(b"x", eof=False)
    with pytest.raises(AttributeError):
        first.data = b"y"  # type: ignore[misc]
