"""What a power cut leaves of a log: all that was acknowledged. `make torture` tries 1,000."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_power_cuts import Figures, cut


def cuts(folder: Path, count: int, synchronous: str) -> Figures:
    figures = Figures()
    for seed in range(count):
        (folder / str(seed)).mkdir()
        cut(folder / str(seed), seed, figures, synchronous)
    return figures


def test_no_power_cut_loses_what_was_acknowledged_or_keeps_a_log_from_going_on(tmp_path: Path) -> None:
    figures = cuts(tmp_path, 25, "FULL")
    assert figures.acknowledged > 1000
    assert (figures.cuts, figures.lost, figures.refused, figures.wrong) == (25, 0, 0, 0)


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_store_that_did_not_wait_for_the_disk_would_be_found_out(tmp_path: Path, synchronous: str) -> None:
    figures = cuts(tmp_path, 8, synchronous)
    assert figures.lost + figures.refused + figures.wrong > 0
