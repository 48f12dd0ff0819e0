"""The corpus says what is in its texts, is the same each time, and keeps its halves apart."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from benchmarks.inspect.corpus import Text, corpus
from benchmarks.inspect.others import Others
from benchmarks.inspect.sampling import drawn
from benchmarks.inspect.scoring import scores
from mitmsec_addons.registry import build

NAMED = r"(?i)acme(?:_key)?[ ]?(?:=|:{1,2})['\"]?(ac_[a-f0-9]{12,}|[^\s;]{8})(?:;|\Z)"


@pytest.mark.parametrize("expression", [NAMED, r"\bAB[\w-]{4}\b", r"(?<!x)a.b\d+?(?=c)?", r"(?:x|yy){3}"])
def test_what_is_drawn_matches(expression: str) -> None:
    for seed in range(30):
        text = drawn(expression, random.Random(seed))
        assert text is not None
        assert re.search(expression, text)


def test_of_an_expression_that_names_its_value_that_is_drawn() -> None:
    assert drawn("key=(?P<value>ab{2})", random.Random(1)) == "abb"
    assert drawn("(", random.Random(1)) is None
    assert drawn("a(?!a)b(?<=c)", random.Random(1)) is None


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Text]:
    code = tmp_path_factory.mktemp("code")
    (code / "a.py").write_text("import os\n" * 400)
    (code / "b.js").write_text("-----BEGIN PRIVATE KEY-----")
    said = Others(drawn_from={"acme": "ac_[a-f0-9]{20}", "other": "ot_[a-f0-9]{20}"}, confirming=("ac_[a-f0-9]+", "("))
    return corpus(said, [code])


def test_it_is_the_same_each_time_and_in_two_halves(texts: list[Text], tmp_path: Path) -> None:
    again = corpus(Others(drawn_from={}, confirming=()), [])
    assert {text.is_held_out for text in texts} == {True, False}
    assert len(again) > 3000
    assert corpus(Others(drawn_from={}, confirming=()), []) == again


def test_what_nobody_confirms_and_files_with_keys_are_left_out(texts: list[Text]) -> None:
    kinds = {text.kind for text in texts}
    assert {"acme", "card", "iban", "ssn", "order", "source .py"} <= kinds
    assert {"other", "source .js"} & kinds == set()


def test_scores_count_what_is_right() -> None:
    iban = build("iban", ())
    some = [
        Text("to DE89370400440532013000.", "iban", "iban"),
        Text("to nobody", "iban", "iban"),
        Text("GB82WEST12345698765432", "sku"),
        Text("nothing", "words"),
        Text("DE89370400440532013000", "card", "payment_card"),
    ]
    score = scores({"iban": iban}, some)["iban"]
    assert (score.found, score.missed, score.wrong) == (1, 1, 2)
    assert (score.missed_kinds, score.wrong_kinds) == ((("iban", 1),), (("sku", 1), ("card", 1)))
    assert (score.precision, score.recall) == (1 / 3, 0.5)
