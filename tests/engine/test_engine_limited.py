"""A call that may not end."""

from __future__ import annotations

import pytest

import mitmsec.engine.limited as limiting
from mitmsec.core.inspecting import TooLong
from mitmsec.engine.limited import limited


def test_a_call_that_does_not_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "CALL_LIMIT_S", 0.05)

    def endless() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    with pytest.raises(TooLong):
        limited(endless)
    assert limited(lambda: "after that") == "after that"
