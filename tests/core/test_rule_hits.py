"""What a rule's meta says about its hits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Severity
from mitmsec.core.rule_hits import CONFIDENCE, DESCRIPTION_LIMIT_CHARACTERS, hit


@pytest.mark.parametrize(
    ("meta", "severity", "confidence"),
    [
        ([], Severity.MEDIUM, CONFIDENCE),
        ([("severity", "High"), ("confidence", 0.5)], Severity.HIGH, 0.5),
        ([("severity", " critical "), ("confidence", 80)], Severity.HIGH, 0.8),
        ([("severity", "low"), ("confidence", 1)], Severity.LOW, 1.0),
        ([("severity", "informational"), ("confidence", 0)], Severity.INFO, 0.0),
        ([("severity", 3), ("confidence", "high")], Severity.MEDIUM, CONFIDENCE),
        ([("severity", "dire"), ("confidence", True)], Severity.MEDIUM, CONFIDENCE),
        ([("confidence", -1)], Severity.MEDIUM, CONFIDENCE),
        ([("confidence", 101)], Severity.MEDIUM, CONFIDENCE),
        ([("confidence", 1.5)], Severity.MEDIUM, CONFIDENCE),
    ],
)
def test_severity_and_confidence_are_what_the_rule_says_of_itself(
    meta: list[tuple[str, Any]], severity: Severity, confidence: float
) -> None:
    made = hit("own", meta, [])
    assert (made.severity, made.confidence) == (severity, confidence)


def test_the_place_is_the_first_of_all_patterns() -> None:
    made = hit("own", [], [(9, "$a", 3), (4, "$b", 70)])
    assert (made.offset, made.pattern, made.size_bytes) == (4, "$b", 70)
    assert hit("own", [], []).offset is None


VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.binary())


@given(st.lists(st.tuples(st.sampled_from(["severity", "confidence", "description"]), VALUES)))
def test_whatever_the_meta_is_a_hit_can_be_recorded(meta: list[tuple[str, Any]]) -> None:
    made = hit("own", meta, [])
    assert 0 <= made.confidence <= 1
    assert len(made.description) <= DESCRIPTION_LIMIT_CHARACTERS
    assert made.description.isprintable()
