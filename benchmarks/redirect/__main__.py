"""`python -m benchmarks.redirect`: run, print, write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import entry, render
from benchmarks.redirect import backends, session
from benchmarks.redirect.figures import checks
from benchmarks.redirect.session import Plan
from benchmarks.redirect.tables import tables

_DEFAULT = Plan(rounds=5, window_s=3, bulk_s=1.5, calls=300, in_a_row=50_000)
_QUICK = Plan(rounds=1, window_s=1, bulk_s=0.5, calls=100, in_a_row=2_000)
_PROGRAMS = ("nginx", "wrk", "curl", "mitmproxy")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as `entry.ran` says."""
    options = _options(arguments)
    return entry.ran(lambda: _measure(options, _QUICK if options.quick else _DEFAULT))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = entry.parser(
        "benchmarks.redirect", "what leading connections to a gate costs", quick="one short round (about a minute)"
    )
    parser.add_argument("--row", dest="rows", action="append", choices=backends.NAMES, help="only this; repeat")
    options = parser.parse_args(arguments)
    options.rows = [name for name in backends.NAMES if name in (options.rows or backends.NAMES)]
    return options


def _measure(options: argparse.Namespace, plan: Plan) -> None:
    rows, facts = session.take(options.rows, plan, entry.say)
    reached = checks(rows)
    print(render.text(rows, reached, tables))
    entry.write_json(options.json, facts, plan, rows, reached)
    if options.report:
        block = render.markdown(rows, reached, entry.machine(facts, plan, _PROGRAMS), tables)
        options.report.write_text(render.placed(options.report.read_text(), block))


if __name__ == "__main__":
    sys.exit(main())
