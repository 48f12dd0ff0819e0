"""Kills of a real recorder, a few of the 1,000 of `make torture`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from audit_kills import killed


def test_kills_at_random_lose_nothing_that_was_acknowledged_and_leave_a_log_that_is_whole(tmp_path: Path) -> None:
    figures = asyncio.run(killed(tmp_path, 8))
    assert figures.acknowledged > 100
    assert (figures.kills, figures.lost, figures.wrong) == (8, 0, [])
