"""`python -m benchmarks.redirect`: run, print, write."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import render
from benchmarks.figures import Check, Row
from benchmarks.host import Facts, Failed
from benchmarks.redirect import backends, session
from benchmarks.redirect.figures import checks
from benchmarks.redirect.session import Plan
from benchmarks.redirect.tables import tables

_DEFAULT = Plan(rounds=5, window_s=3, bulk_s=1.5, calls=300, in_a_row=50_000)
_QUICK = Plan(rounds=1, window_s=1, bulk_s=0.5, calls=100, in_a_row=2_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done (whatever the thresholds say), 1 nothing could be measured, 3 not root."""
    options = _options(arguments)
    if os.geteuid() != 0:
        print("the benchmark makes network namespaces and loads eBPF: run it as root", file=sys.stderr)
        return 3
    os.environ.pop("SUDO_UID", None)  # the clients are root's, so that the redirect of the peers can tell them by group
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = _QUICK if options.quick else _DEFAULT
    started_s = time.monotonic()
    try:
        rows, facts = session.take(options.rows, plan, _say)
    except (Failed, LookupError) as wrong:
        print(f"benchmark: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was removed", file=sys.stderr)
        return 128 + signal.SIGINT
    reached = checks(rows)
    print(render.text(rows, reached, tables))
    _say(f"took {time.monotonic() - started_s:.0f} s")
    _write(options, plan, rows, reached, facts)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.redirect", description="what leading connections to a gate costs")
    parser.add_argument("--quick", action="store_true", help="one short round (about a minute)")
    parser.add_argument("--row", dest="rows", action="append", choices=backends.NAMES, help="only this; repeat")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--report", type=Path, help="put the tables into this Markdown page")
    options = parser.parse_args(arguments)
    options.rows = [name for name in backends.NAMES if name in (options.rows or backends.NAMES)]
    return options


def _write(options: argparse.Namespace, plan: Plan, rows: list[Row], reached: Sequence[Check], facts: Facts) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": asdict(facts),
            "plan": asdict(plan),
            "rows": [asdict(row) for row in rows],
            "checks": [{**asdict(check), "passed": check.passed} for check in reached],
        }
        options.json.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    if options.report:
        block = render.markdown(rows, reached, _machine(facts, plan), tables)
        options.report.write_text(render.placed(options.report.read_text(), block))


def _machine(facts: Facts, plan: Plan) -> str:
    programs = ", ".join(f"{name} {facts.versions[name]}" for name in ("nginx", "wrk", "curl", "mitmproxy"))
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Linux {facts.kernel} {facts.architecture}, {facts.cores} cores "
        f"({facts.cpu}), {facts.memory_gib:g} GiB, load average before {facts.load_average[0]:.1f}, "
        f"Python {facts.python}, {programs}; {plan.rounds} rounds of {plan.window_s} s."
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
