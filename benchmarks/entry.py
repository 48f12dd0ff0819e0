"""What the entry points of benchmarks have in common: their options, how they end, how they write what was measured."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from benchmarks.figures import Check, Row
from benchmarks.host import Facts, Failed


class Rounds(Protocol):
    """What the plan of any benchmark says."""

    @property
    def rounds(self) -> int: ...

    @property
    def window_s(self) -> float: ...


def parser(module: str, description: str, *, quick: str) -> argparse.ArgumentParser:
    """With the options that each has."""
    made = argparse.ArgumentParser(prog=module, description=description)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", type=Path, help="write every figure here")
    made.add_argument("--report", type=Path, help="put the tables into this Markdown page")
    return made


def ran(measure: Callable[[], None]) -> int:
    """The exit status: 0 done (whatever the thresholds say), 1 nothing could be measured, 3 not root."""
    if os.geteuid() != 0:
        print("the benchmark makes network namespaces and loads eBPF: run it as root", file=sys.stderr)
        return 3
    os.environ.pop("SUDO_UID", None)  # the clients are root's, so that the redirect of the peers can tell them by group
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started_s = time.monotonic()
    try:
        measure()
    except (Failed, LookupError) as wrong:
        print(f"benchmark: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was removed", file=sys.stderr)
        return 128 + signal.SIGINT
    say(f"took {time.monotonic() - started_s:.0f} s")
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_json(path: Path | None, facts: Facts, plan: object, rows: Sequence[Row], reached: Sequence[Check]) -> None:
    """Every figure; `plan` is a dataclass. Nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": asdict(facts),
        "plan": asdict(plan),  # type: ignore[call-overload]  # each benchmark has its own
        "rows": [asdict(row) for row in rows],
        "checks": [{**asdict(check), "passed": check.passed} for check in reached],
    }
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def machine(facts: Facts, plan: Rounds, programs: Sequence[str]) -> str:
    """When, where and with which of the programs' versions it was measured."""
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in programs)
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Linux {facts.kernel} {facts.architecture}, {facts.cores} cores "
        f"({facts.cpu}), {facts.memory_gib:g} GiB, load average before {facts.load_average[0]:.1f}, "
        f"Python {facts.python}, {versions}; {plan.rounds} rounds of {plan.window_s} s."
    )
