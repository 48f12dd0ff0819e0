"""How right inspectors are on a corpus, and what they cost.

    python -m benchmarks.inspect [--report docs/inspectors.md] [--tuning]

`--tuning` shows the tuning half alone, and what went wrong there: the other one is only ever scored.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.inspect.corpus import Text, corpus
from benchmarks.inspect.others import others
from benchmarks.inspect.scoring import Score, scores, splits, tells
from benchmarks.inspect.source import CODE, source_code
from benchmarks.inspect.speed import PART_BYTES, floods, held, reload_ms
from benchmarks.inspect.streamed import streamed
from mitmsec.core.inspection import Inspector
from mitmsec_addons.registry import build, prepare

NAMES = ("secrets", "payment_card", "iban", "national_id")
BEGIN, END = "<!-- bench-inspect: begin -->", "<!-- bench-inspect: end -->"
SPLIT_TEXTS = 100


def main() -> None:
    """Print the tables, and put them into a report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--streamed", action="store_true", help="only what goes from end to end (root)")
    told = parser.parse_args()
    if told.streamed:
        print("\n".join(streamed(source_code())))
        return
    prepared = prepare("secrets")
    inspectors = {name: build(name, (), prepared if name == "secrets" else None) for name in NAMES}
    texts = corpus(others(), [folder for folder in CODE if folder.is_dir()])
    if told.tuning:
        _show(inspectors, [text for text in texts if not text.is_held_out])
        return
    tables = "\n".join(_tables(inspectors, texts, prepared))
    print(tables)
    if told.report is not None:
        before, _, rest = told.report.read_text().partition(BEGIN)
        told.report.write_text(f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}")


def _show(inspectors: Mapping[str, Inspector], texts: list[Text]) -> None:
    for name, score in scores(inspectors, texts).items():
        print(name, score)
    for text in texts:
        if text.detector is not None and not tells(inspectors[text.detector], text.text.encode()):
            print(text.kind, repr(text.text[:160]))


def _tables(inspectors: Mapping[str, Inspector], texts: list[Text], prepared: bytes) -> Iterator[str]:
    yield f"{time.strftime('%Y-%m-%d')}, {len(texts)} texts.\n"
    yield "| held-out half | found | missed | wrong | precision | recall | tuning half: precision | recall |"
    yield "|---|---|---|---|---|---|---|---|"
    tuned = scores(inspectors, (text for text in texts if not text.is_held_out))
    for name, score in scores(inspectors, (text for text in texts if text.is_held_out)).items():
        yield f"| `{name}` | {score.found} | {score.missed} | {score.wrong} | {_two(score)} | {_two(tuned[name])} |"
    yield "\n| on source code | MB/s a core | slice of 16 KiB, p50 | p99 |"
    yield "|---|---|---|---|"
    source = source_code()
    for name, inspector in inspectors.items():
        one = held(inspector, source)
        yield f"| `{name}` | {one.mb_a_s:.0f} | {one.p50_ms:.2f} ms | {one.p99_ms:.2f} ms |"
    yield "\n| a flood of | for | MB/s a core | slice of 16 KiB, p50 | p99 |"
    yield "|---|---|---|---|---|"
    for kind, (name, data) in floods().items():
        one = held(inspectors[name], data * (PART_BYTES // len(data)))
        yield f"| {kind} | `{name}` | {one.mb_a_s:.0f} | {one.p50_ms:.2f} ms | {one.p99_ms:.2f} ms |"
    yield f"\n{_splits(inspectors, texts)}"
    begun = time.process_time()
    prepare("secrets")
    compiled_s = time.process_time() - begun
    yield f"\nRules of `secrets`: compiled in {compiled_s:.1f} s, there again in {reload_ms(prepared):.0f} ms."
    yield from streamed(source)


def _splits(inspectors: Mapping[str, Inspector], texts: list[Text]) -> str:
    positives = [text for text in texts if text.detector is not None and text.is_held_out]
    some = random.Random(2).sample(positives, SPLIT_TEXTS)
    found = [text for text in some if tells(inspectors[str(text.detector)], text.text.encode())]
    counts = [splits(inspectors[str(text.detector)], text) for text in found]
    same, all_of_them = (sum(column) for column in zip(*counts, strict=True))
    return f"Cut in two at each offset of {len(found)} positives: the same was found at {same} of {all_of_them}."


def _two(score: Score) -> str:
    return f"{score.precision:.3f} | {score.recall:.3f}"


if __name__ == "__main__":
    main()
