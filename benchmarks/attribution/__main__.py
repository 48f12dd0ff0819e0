"""`python -m benchmarks.attribution`: make the flows, read the log, print the table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import host, render
from benchmarks.attribution import labels, score, world
from benchmarks.attribution.job import Job
from benchmarks.attribution.plan import KINDS, Course, Pattern
from benchmarks.attribution.score import Event, Score

_MITMSEC = (sys.executable, "-m", "mitmsec")
_RUN_DEADLINE_S = 1200
ACTIONS = ("bypass", "capture", "decrypt")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 every score holds, 1 one doesn't, 3 not root."""
    options = _options(arguments)
    if os.geteuid() != 0:
        print("attribution is measured in network namespaces, under `mitmsec run`: run it as root", file=sys.stderr)
        return 3
    os.environ.pop("SUDO_UID", None)
    scores = {}
    for action in options.actions:
        started_s = time.monotonic()
        try:
            scores[action] = take(options, action)
        except (host.Failed, ValueError) as wrong:
            print(f"attribution: {wrong}", file=sys.stderr)
            return 1
        print(f"{action}\n\n{score.table(scores[action])}\n", flush=True)
        print(f"took {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    _write(options, scores)
    return 1 if any(scored.faults for scored in scores.values()) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="attribution", description=__doc__, epilog=_patterns())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=20_000, help="flows in all (20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the plan (1)")
    parser.add_argument("--action", dest="actions", action="append", choices=ACTIONS, help="bypass, decrypt; repeat")
    parser.add_argument("--pattern", dest="patterns", action="append", choices=list(Pattern), help="only this; repeat")
    parser.add_argument("--reach", action="append", choices=list(Course), help="what the backend sees (all of them)")
    parser.add_argument("--in-flight", type=int, default=8, help="units at once (8)")
    parser.add_argument("--corpus", type=Path, help="keep the last labelled flows here, one JSON object a line")
    parser.add_argument("--events", type=Path, help="keep the last events here, likewise")
    parser.add_argument("--json", type=Path, help="keep the scores here")
    parser.add_argument("--report", type=Path, help="put the tables into this Markdown page")
    options = parser.parse_args(arguments)
    options.actions = options.actions or ["bypass", "decrypt"]
    options.patterns = options.patterns or list(Pattern)
    options.reach = [Course(name) for name in options.reach or Course]
    return options


def _patterns() -> str:
    return "patterns:\n" + "\n".join(f"  {name:<15}{kind.course:<14}{kind.why}" for name, kind in KINDS.items())


def take(options: argparse.Namespace, action: str) -> Score:
    """Make the flows under `mitmsec run` and score its log. Raises `Failed`, ValueError."""
    folder = Path(tempfile.mkdtemp(prefix=f"mitmsec-attribution-{os.getpid()}-"))
    folder.chmod(0o755)
    try:
        work, path = _job(options, folder), folder / "job.json"
        work.write(path)
        origin_fd = world.enter()
        try:
            with world.far_side(work, path, origin_fd):
                _run(action, folder, path)
        finally:
            os.close(origin_fd)
        return _scored(options, work, events(folder / "state"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _scored(options: argparse.Namespace, work: Job, told: list[Event]) -> Score:
    made, seen = labels.labels(_lines(work.labels)), labels.sightings(_lines(work.sightings))
    if options.corpus:
        options.corpus.write_text("".join(f"{text}\n" for text in labels.corpus(made, seen)))
    if options.events:
        options.events.write_text("".join(json.dumps(event) + "\n" for event in told))
    planned = sum(len(unit) for unit in work.units())
    return score.score(made, seen, told, options.reach, planned)


def _job(options: argparse.Namespace, folder: Path) -> Job:
    partner = folder / "partner"
    shutil.copy(os.path.realpath(sys.executable), partner)
    programs = {name: os.path.realpath(shutil.which(name) or name) for name in ("bash", "curl")}
    return Job(
        count=options.count,
        seed=options.seed,
        patterns=tuple(options.patterns),
        folder=str(folder),
        server_v4=world.SERVER_V4,
        server_v6=world.SERVER_V6,
        partner=str(partner),
        in_flight=options.in_flight,
        **programs,
    )


def _run(action: str, folder: Path, path: Path) -> None:
    policy = folder / "policy.toml"
    policy.write_text(f'version = 1\n\n[defaults]\naction = "{action}"\n')
    argv = [*_MITMSEC, "run", "--state", str(folder / "state"), "--policy", str(policy), "--"]
    argv += [sys.executable, "-m", "benchmarks.attribution.actors", str(path)]
    host.run(argv, timeout_s=_RUN_DEADLINE_S)


def events(state: Path) -> list[Event]:
    """The connection events of the log. Raises `Failed`."""
    argv = [*_MITMSEC, "audit", "list", "--state", str(state), "--json", "--kind", "connection"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise host.Failed(f"audit list: {listed.stderr.strip()[-400:]}")
    return [json.loads(text) for text in listed.stdout.splitlines()]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _write(options: argparse.Namespace, scores: Mapping[str, Score]) -> None:
    if options.json:
        told = {action: score.told(scored) for action, scored in scores.items()}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    if options.report:
        facts = host.facts({})
        measured = ", ".join([time.strftime("%Y-%m-%d", time.gmtime()), *host.commit()])
        machine = f"{measured}, Linux {facts.kernel}, {facts.cores} cores, "
        said = [f"{machine}Python {facts.python}, seed {options.seed}."]
        for action, scored in scores.items():
            said.append(f"**{action}**\n\n```text\n{score.table(scored, examples=0)}\n```")
        options.report.write_text(render.placed(options.report.read_text(), "\n\n".join(said)))


if __name__ == "__main__":
    sys.exit(main())
