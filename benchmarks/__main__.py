"""`python -m benchmarks`: run, print, write."""

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

from benchmarks import plot, render, session
from benchmarks.figures import Check, Row, checks
from benchmarks.host import Facts, Failed
from benchmarks.measure import Plan

_DEFAULT = Plan(rounds=5, window_s=3, singles=25, huge=True)
_QUICK = Plan(rounds=1, window_s=2, singles=15, huge=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done (whatever the thresholds say), 1 nothing could be measured, 3 not root."""
    options = _options(arguments)
    if os.geteuid() != 0:
        print("the benchmark makes network namespaces and loads eBPF: run it as root", file=sys.stderr)
        return 3
    os.environ.pop("SUDO_UID", None)  # the clients are root's, so that the redirect of the peers can tell them by group
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = _QUICK if options.quick else _DEFAULT
    started = time.monotonic()
    try:
        rows, facts = session.take(options.variants, plan, options.workers, _say)
    except (Failed, LookupError) as wrong:
        print(f"benchmark: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was removed", file=sys.stderr)
        return 128 + signal.SIGINT
    reached = checks(rows)
    print(render.text(rows, reached))
    _say(f"took {time.monotonic() - started:.0f} s")
    _write(options, plan, rows, reached, facts)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="mitmsec beside its peers, in one interleaved run")
    parser.add_argument("--quick", action="store_true", help="one short round, no 1 GB download (under 2 minutes)")
    parser.add_argument("--variant", dest="variants", action="append", choices=session.NAMES, help="only this; repeat")
    parser.add_argument("--workers", type=int, help="mitmsec's workers (its own default otherwise)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--report", type=Path, help="put the tables into this Markdown page")
    parser.add_argument("--plot", type=Path, help="draw the shares of direct into this SVG file")
    options = parser.parse_args(arguments)
    options.variants = options.variants or list(session.NAMES)
    return options


def _write(options: argparse.Namespace, plan: Plan, rows: list[Row], reached: Sequence[Check], facts: Facts) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rated = [{**asdict(check), "passed": check.passed} for check in reached]
        whole = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": asdict(facts),
            "plan": asdict(plan),
            "rows": [asdict(row) for row in rows],
            "checks": rated,
        }
        options.json.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    if options.report:
        page = options.report.read_text() if options.report.exists() else "# Performance\n"
        options.report.write_text(render.placed(page, render.markdown(rows, reached, _machine(facts, plan))))
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot.svg(rows, _machine(facts, plan)))


def _machine(facts: Facts, plan: Plan) -> str:
    programs = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Linux {facts.kernel} {facts.architecture}, {facts.cores} cores "
        f"({facts.cpu}), {facts.memory_gib:g} GiB, load average before {facts.load_average[0]:.1f}, "
        f"Python {facts.python}, {programs}; {plan.rounds} rounds of {plan.window_s} s."
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
