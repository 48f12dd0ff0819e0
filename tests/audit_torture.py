"""`make torture`: kills, power cuts and tampering. Prints what came of it; status 1 if anything was wrong."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from audit_kills import Killed, killed
from audit_power_cuts import Figures, cut
from audit_tampering import missed

A_LOG = 50  # kills
SIZES = (*range(1, 41), *range(255, 261))


def _tampering() -> bool:
    variants, wrong = 0, list[str]()
    for size in SIZES:
        for at in range(size):
            count, missing = missed(size, at)
            variants += count
            wrong += missing
    print(
        f"tampering: {variants} variants of logs of {len(SIZES)} sizes, {len(wrong)} judged wrongly",
        *wrong[:9],
        flush=True,
    )
    return bool(wrong)


def _power_cuts(count: int) -> bool:
    figures = Figures()
    for seed in range(count):
        with tempfile.TemporaryDirectory(prefix="mitmsec-cut-") as folder:
            cut(Path(folder), seed, figures)
    print(f"power cuts: {figures}", flush=True)
    return bool(figures.lost or figures.refused or figures.wrong)


def _kills(count: int) -> bool:
    """Of several logs, so that not each of them is long."""
    total = Killed()
    for seed in range(0, count, A_LOG):
        with tempfile.TemporaryDirectory(prefix="mitmsec-killed-") as folder:
            figures = asyncio.run(killed(Path(folder), min(A_LOG, count - seed), seed))
        total.kills += figures.kills
        total.acknowledged += figures.acknowledged
        total.lost += figures.lost
        total.wrong += figures.wrong
    print(f"kills: {total}", flush=True)
    return bool(total.lost or total.wrong)


if __name__ == "__main__":
    times = int(sys.argv[1])
    sys.exit(any([_power_cuts(times), _kills(times), _tampering()]))
