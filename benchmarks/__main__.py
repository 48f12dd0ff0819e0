"""`python -m benchmarks`: run, print, write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import entry, plot, render, session
from benchmarks.figures import checks
from benchmarks.measure import Plan

_DEFAULT = Plan(rounds=5, window_s=3, singles=25, huge=True)
_QUICK = Plan(rounds=1, window_s=2, singles=15, huge=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as `entry.ran` says."""
    options = _options(arguments)
    return entry.ran(lambda: _measure(options, _QUICK if options.quick else _DEFAULT))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = entry.parser(
        "benchmarks",
        "mitmsec beside its peers, in one interleaved run",
        quick="one short round, no 1 GB download (under 2 minutes)",
    )
    parser.add_argument("--variant", dest="variants", action="append", choices=session.NAMES, help="only this; repeat")
    parser.add_argument("--workers", type=int, help="mitmsec's workers (its own default otherwise)")
    parser.add_argument("--plot", type=Path, help="draw the shares of direct into this SVG file")
    options = parser.parse_args(arguments)
    options.variants = options.variants or list(session.NAMES)
    return options


def _measure(options: argparse.Namespace, plan: Plan) -> None:
    rows, facts = session.take(options.variants, plan, options.workers, entry.say)
    reached = checks(rows)
    print(render.text(rows, reached))
    entry.write_json(options.json, facts, plan, rows, reached)
    machine = entry.machine(facts, plan, list(facts.versions))
    if options.report:
        page = options.report.read_text() if options.report.exists() else "# Performance\n"
        options.report.write_text(render.placed(page, render.markdown(rows, reached, machine)))
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot.svg(rows, machine))


if __name__ == "__main__":
    sys.exit(main())
