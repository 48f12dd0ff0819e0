"""Whatever is done to a log, wherever: found by what was kept elsewhere; and without it, what can be.

`make torture` tries every position of more sizes.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from audit_events import forging, store_in
from audit_tampering import DRAFTS, log_of, missed

SIZES = (1, 2, 3, 9)


@pytest.mark.parametrize("size", SIZES)
def test_at_every_position_of_a_log_all_is_found_with_what_was_kept(size: int) -> None:
    """Raw changes also without it; what was written anew and signed by stolen keys, by nothing else."""
    for at in range(size):
        count, wrong = missed(size, at)
        assert count >= 12
        assert wrong == []


@pytest.mark.parametrize("size", [255, 256, 257])
def test_over_the_ends_of_tiles_too(size: int) -> None:
    for at in (0, 128, size - 1):
        assert missed(size, at)[1] == []


def test_the_tables_of_these_logs_are_those_of_real_ones(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.close()
    sql = "SELECT name, type FROM pragma_table_info(?) ORDER BY cid"
    with closing(log_of(DRAFTS[:1])) as ours, forging(store.path) as real:
        for table in ("events", "tiles", "checkpoints", "signers"):
            assert ours.execute(sql, (table,)).fetchall() == real.execute(sql, (table,)).fetchall()
