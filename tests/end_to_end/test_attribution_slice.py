"""A slice of the attribution corpus, made anew under `mitmsec run` in namespaces of its own, and scored.

`make bench-attribution` makes all of it. What is true of the corpus itself is tested here too: a label that lies would
condemn the product, or hide its fault.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attribution.plan import KINDS, Course, Pattern

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]

# Callers that live, unchanged, until they are answered: whoever asks about them in time cannot be misled.
STAYS = [Pattern.BASH, Pattern.CURL, Pattern.FORKED, Pattern.LENT, Pattern.STEADY, Pattern.THREADS]
# Callers that have ended, or run another program, when they are asked about, or whose pid is somebody else's: the
# hook's word is all that there is, and it says which file that was and where it lies.
CHANGES = [Pattern.BRIEF, Pattern.EXEC_CHAIN, Pattern.INHERITED, Pattern.PASSED, Pattern.REUSED]


@dataclass(frozen=True)
class Slice:
    """The score, as `--json` tells it, and the corpus."""

    score: dict[str, Any]
    corpus: list[dict[str, Any]]

    def counted(self, verdict: str) -> int:
        return sum(row["flows"] for row in self.score["counts"] if row["verdict"] == verdict)

    def by(self, pattern: Pattern) -> list[dict[str, Any]]:
        return [flow for flow in self.corpus if flow["pattern"] == pattern]


def take(folder: Path, *options: str, patterns: list[Pattern], action: str = "bypass") -> Slice:
    chosen = [word for pattern in patterns for word in ("--pattern", pattern)]
    places = ["--json", str(folder / "score.json"), "--corpus", str(folder / "corpus.jsonl")]
    argv = [sys.executable, "-m", "benchmarks.attribution", "--action", action, *chosen, *places, *options]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert (folder / "score.json").exists(), done.stderr
    score = json.loads((folder / "score.json").read_text())[action]
    assert done.returncode == bool(score["faults"]), done.stderr
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert len(corpus) > 0, done.stderr
    return Slice(score, corpus)


@pytest.mark.parametrize("action", ["bypass", "decrypt"])
def test_callers_that_stay_are_all_named_rightly(tmp_path: Path, action: str) -> None:
    made = take(tmp_path, "--count", "300", patterns=STAYS, action=action)
    assert made.score["faults"] == [], made.score
    assert made.counted("right") == len(made.corpus) >= 300
    assert (made.score["lost"], made.score["crossed"], made.score["unmade"]) == ([], [], 0)


def test_who_exchanges_datagrams_is_named_rightly_in_both_directions(tmp_path: Path) -> None:
    made = take(tmp_path, "--count", "200", patterns=[Pattern.UDP_CONNECTED, Pattern.UDP_SENDTO, Pattern.UDP_SERVER])
    assert (made.score["wrong"], made.score["lost"], made.score["crossed"]) == ([], [], [])
    assert made.counted("right") == len(made.corpus) >= 200


def test_callers_that_do_not_stay_what_they_were_are_all_named_rightly(tmp_path: Path) -> None:
    made = take(tmp_path, "--count", "300", patterns=CHANGES)
    assert (made.score["wrong"], made.score["lost"], made.score["crossed"]) == ([], [], [])
    assert made.counted("right") == len(made.corpus) >= 300


def test_the_labels_say_what_their_patterns_are_for(tmp_path: Path) -> None:
    made = take(tmp_path, "--count", "200", "--seed", "3", patterns=list(Pattern))
    assert {flow["pattern"] for flow in made.corpus} == set(Pattern)
    assert made.score["crossed"] == []
    assert [flow for flow in made.corpus if flow["seen"] is None] == []
    outside = sum(KINDS[Pattern(flow["pattern"])].course is not Course.OUTBOUND_TCP for flow in made.corpus)
    assert made.counted("not recorded") + made.counted("right") >= outside > 0
    for first, second, third in in_units(made, Pattern.EXEC_CHAIN, 3):
        assert first["pid"] == second["pid"] == third["pid"]
        assert [Path(flow["exe"]).name for flow in (second, third)] == ["bash", "curl"]
        assert first["exe"] == python(made)
    for first, second in in_units(made, Pattern.REUSED, 2):
        assert first["pid"] == second["pid"]
        assert first["exe"] != second["exe"]
    for unit in in_units(made, Pattern.THREADS, 4):
        assert len({flow["pid"] for flow in unit}) == 1
    assert {Path(flow["exe"]).name for flow in made.by(Pattern.LENT)} == {"partner"}
    assert {flow["exe"] for flow in made.by(Pattern.PASSED)} == {python(made)}
    assert len({flow["pid"] for flow in made.by(Pattern.SERVER)}) == 1
    assert len({flow["pid"] for flow in made.by(Pattern.PASSED)}) == len(made.by(Pattern.PASSED))


def python(made: Slice) -> str:
    exe: str = made.by(Pattern.STEADY)[0]["exe"]
    return exe


def in_units(made: Slice, pattern: Pattern, size: int) -> list[list[dict[str, Any]]]:
    """Flows of the pattern in groups of consecutive numbers; one of which a flow was not made is left out."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    flows = sorted(made.by(pattern), key=lambda flow: int(flow["flow"]))
    starts: list[int] = []
    for flow in flows:
        if not starts or flow["flow"] >= starts[-1] + size:
            starts.append(flow["flow"])
        groups[starts[-1]].append(flow)
    whole = [group for group in groups.values() if len(group) == size]
    assert whole
    return whole
